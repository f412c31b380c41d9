"""What the fuzzer starts from is valid, and stays readable when it changes inside its wrappings."""

import base64
import json

import pytest

from loadtests.fuzz.cases import Case, case_of
from loadtests.fuzz.mutation import mutated, with_checksums
from loadtests.fuzz.seeds import form, seeds, wrapped
from service.content.encodings import decode
from tests.support.pictures import encoded, seven

SEEDS = seeds()
PNG = encoded(seven(), "PNG")


@pytest.mark.parametrize("name", SEEDS)
def test_seed_gives_rows(name: str) -> None:
    case = case_of(SEEDS[name].to_bytes())
    job = case.job()
    assert job.run(case.body).shape[1:] == job.spec.shape[1:]


@pytest.mark.parametrize("name", SEEDS)
def test_mutation_that_changes_nothing_keeps_the_rows(name: str) -> None:
    data = SEEDS[name].to_bytes()
    rows = SEEDS[name].job().run(SEEDS[name].body)
    for seed in range(8):
        case = case_of(mutated(data, 10**6, seed, lambda content, _: content))
        assert (case.job().run(case.body) == rows).all()


@pytest.mark.parametrize(
    "case",
    [
        Case(wrapped(b"pixel" * 40, "gzip"), "rows", "gzip"),
        Case(wrapped(b"pixel" * 40, "deflate"), "rows", "deflate"),
        Case(form((b"pixel" * 40, "image/png")), "form"),
        Case(json.dumps({"images": [base64.b64encode(b"pixel" * 40).decode()]}).encode(), "json"),
    ],
    ids=["gzip", "deflate", "form", "base64"],
)
def test_mutation_reaches_what_is_wrapped(case: Case) -> None:
    def change(content: bytes, _: int) -> bytes:
        return content.replace(b"pixel" * 40, b"found" * 40)

    results = [case_of(mutated(case.to_bytes(), 10**6, seed, change)) for seed in range(40)]
    plain = [decode(result.body, case.coding, 10**6) for result in results]
    encodings = (b"found" * 40, base64.b64encode(b"found" * 40))
    assert any(each in body for body in plain for each in encodings)


def test_mutation_stays_within_its_bytes() -> None:
    data = SEEDS["gzip form PNG"].to_bytes()
    for seed in range(40):
        changed = mutated(data, len(data), seed, lambda content, most: (content * 3)[:most])
        assert len(changed) <= len(data)


def test_checksums_are_set_right() -> None:
    broken = PNG[:18] + b"\xff" + PNG[19:]
    repaired = with_checksums(broken)
    assert repaired[:29] == broken[:29]
    assert repaired[29:33] != broken[29:33]
    assert with_checksums(repaired) == repaired
    assert with_checksums(PNG) == PNG
    assert with_checksums(PNG[:-5]) == PNG[:-5]
