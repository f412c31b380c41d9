"""What the tracing wing reads and decides, without a collector."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

if not os.environ.get("CI"):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from opentelemetry.context import Context
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.observability.tracing import read_server, read_traceparent


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (b"digits.example.com", {"server.address": "digits.example.com", "server.port": 443}),
        (b"10.0.0.1:8000", {"server.address": "10.0.0.1", "server.port": 8000}),
        (b"[::1]:8000", {"server.address": "::1", "server.port": 8000}),
        (b"", {}),
        (b"a b", {}),
        (b"a:b", {}),
        (b"\xff", {}),
    ],
)
def test_a_malformed_host_is_no_server(host: bytes, expected: dict[str, str | int]) -> None:
    assert read_server(host, "https") == expected


HEX = "0123456789abcdef"
VERSIONS = st.sampled_from(["00", "01", "ff", "0"])


def hexadecimal(digits: int) -> st.SearchStrategy[str]:
    return st.one_of(st.text(HEX, min_size=digits, max_size=digits), st.just("0" * digits))


@given(
    st.one_of(
        st.builds(
            "-".join,
            st.tuples(
                st.sampled_from(["00", "01", "ff", "0"]), hexadecimal(32), hexadecimal(16), hexadecimal(2)
            ),
        ),
        st.text(st.characters(max_codepoint=255), max_size=60),
    )
)
def test_a_traceparent_is_read_as_the_sdk_reads_it(value: str) -> None:
    expected = TraceContextTextMapPropagator().extract({"traceparent": value}, Context())
    context, trace_id = read_traceparent(value.encode("latin-1"))
    seen, wanted = (get_current_span(each).get_span_context() for each in (context, expected))
    assert (seen.trace_id, seen.span_id, seen.is_remote) == (
        wanted.trace_id,
        wanted.span_id,
        wanted.is_remote,
    )
    assert seen.trace_flags == wanted.trace_flags
    assert trace_id == wanted.trace_id
