"""Fuzz the decoding of bodies, guided by coverage: `make fuzz`.

Any bytes, under any declared type, give rows or a RequestError; anything else ends the run with the input.
On the event loop a body gives what it gives elsewhere, or is passed on, and nothing warns. The input that
failed is written to reports/; `python -m loadtests.fuzz FILE` decodes it again.
"""

import logging
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import atheris

from loadtests.outputs import REPORTS

INSTRUMENTED = ["service", "PIL", "pillow_heif", "python_multipart"]

with atheris.instrument_imports(include=INSTRUMENTED):
    from loadtests.fuzz.cases import HEAD_BYTES, case_of
    from loadtests.fuzz.mutation import mutated
    from loadtests.fuzz.seeds import seeds
    from service.content.body_jobs import ON_LOOP_BYTES
    from service.content.pictures import TooLargeForLoop
    from service.errors import RequestError
    from service.models.tensors import Array

WORDS = Path(__file__).parent / "bodies.dict"
TIMEOUT_SECONDS = 30


def decode_any(data: bytes) -> None:
    """Decode a body as the service does."""
    if len(data) < HEAD_BYTES:
        return
    outcome = outcome_of(data, on_loop=False)
    if len(data) > HEAD_BYTES + ON_LOOP_BYTES:
        return
    with warnings.catch_warnings(record=True, action="always") as warned, suppress(TooLargeForLoop):
        assert same(outcome_of(data, on_loop=True), outcome), outcome
    assert not warned, warned[0].message


def outcome_of(data: bytes, *, on_loop: bool) -> Array | type[RequestError]:
    """Return the rows, or the class of the error. Raises TooLargeForLoop."""
    job = case_of(data).job()
    try:
        rows = job.run(data[HEAD_BYTES:], on_loop=on_loop)
    except RequestError as error:
        return type(error)
    assert rows.shape[1:] == job.spec.shape[1:], rows.shape
    return rows


def same(one: Array | type[RequestError], other: Array | type[RequestError]) -> bool:
    """Whether two outcomes are the same rows or the same error."""
    if isinstance(one, type) or isinstance(other, type):
        return one is other
    return one.shape == other.shape and bool((one == other).all())


def mutator(data: bytes, max_bytes: int, seed: int) -> bytes:
    """Mutate an input, for atheris."""
    return mutated(data, max_bytes, seed, atheris.Mutate)


def main() -> None:
    """Fuzz until the time is up or an input fails, or decode the files that the command line names."""
    logging.disable(logging.CRITICAL)
    REPORTS.mkdir(exist_ok=True)
    with atheris.instrument_imports(include=INSTRUMENTED):
        cases = seeds()  # writing a format imports its plugin
    with tempfile.TemporaryDirectory() as folder:
        for name, case in cases.items():
            (Path(folder) / name).write_bytes(case.to_bytes())
        options = [f"-dict={WORDS}", f"-timeout={TIMEOUT_SECONDS}", f"-artifact_prefix={REPORTS}/fuzz-"]
        given = sys.argv[1:]
        started = [] if any(Path(each).is_file() for each in given) else [folder]
        atheris.Setup([sys.argv[0], *options, *given, *started], decode_any, custom_mutator=mutator)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
