import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.content.encodings import Coding, decode
from service.errors import InvalidInput, PayloadTooLarge, RequestError

BODY = bytes(range(256)) * 20


def deflated(body: bytes, bits: int = zlib.MAX_WBITS) -> bytes:
    compressor = zlib.compressobj(wbits=bits)
    return compressor.compress(body) + compressor.flush()


ENCODED: list[tuple[Coding, bytes]] = [
    ("gzip", gzip.compress(BODY)),
    ("gzip", gzip.compress(BODY[:7]) + gzip.compress(BODY[7:])),
    ("deflate", deflated(BODY)),
    ("deflate", deflated(BODY, -zlib.MAX_WBITS)),
    ("", BODY),
]


@pytest.mark.parametrize(("coding", "body"), ENCODED)
def test_every_coding_is_decoded(coding: Coding, body: bytes) -> None:
    assert decode(body, coding, len(BODY)) == BODY


@pytest.mark.parametrize(("coding", "body"), ENCODED[:4])
def test_a_broken_body_is_rejected(coding: Coding, body: bytes) -> None:
    for broken in (b"", body[:-9], b"\x1f" + body[1:50], body[:30]):
        with pytest.raises(InvalidInput, match=coding):
            decode(broken, coding, len(BODY))


@pytest.mark.parametrize("body", [deflated(BODY) + b"x", deflated(BODY) * 2])
def test_bytes_behind_a_deflate_stream_are_rejected(body: bytes) -> None:
    with pytest.raises(InvalidInput, match="after its deflate stream"):
        decode(body, "deflate", 2 * len(BODY))


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_takes_no_memory(coding: Coding) -> None:
    bomb = gzip.compress(bytes(50_000_000)) if coding == "gzip" else deflated(bytes(50_000_000))
    tracemalloc.start()
    with pytest.raises(PayloadTooLarge, match="over 40000000 bytes decoded, expected at most 40000000"):
        decode(bomb, coding, 40_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@given(st.binary(max_size=300), st.sampled_from(ENCODED[:4]), st.integers(0, 200))
def test_any_bytes_are_decoded_or_rejected(noise: bytes, sample: tuple[Coding, bytes], at: int) -> None:
    coding, body = sample
    for mutated in (noise, body[:at] + noise + body[at:]):
        try:
            assert len(decode(mutated, coding, 10_000)) <= 10_000
        except RequestError:
            continue
