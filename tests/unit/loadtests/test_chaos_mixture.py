"""The mixed requests of chaos, its attacks' bodies and its broken model."""

import io
import json
import mmap
import random
import subprocess
import sys
import time
from itertools import islice

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

from loadtests.chaos import broken_model, mixture, payloads
from loadtests.chaos.client import Answer
from loadtests.chaos.proc import WATCH_SECONDS, Resources, gauge
from loadtests.peers.wire import TOLERANCE

psutil = pytest.importorskip("psutil")


def test_a_seed_gives_one_mixture_with_every_kind() -> None:
    some = list(islice(mixture.requests(3), 4000))
    assert [each.payload for each in some] == [each.payload for each in islice(mixture.requests(3), 4000)]
    assert {each.kind for each in some} == {kind.name for kind in mixture.KINDS}
    raw = sum(each.kind == "raw" for each in some) / len(some)
    weight = next(kind.weight for kind in mixture.KINDS if kind.name == "raw")
    # Four standard deviations of 4,000 draws with this probability.
    assert raw == pytest.approx(weight / sum(kind.weight for kind in mixture.KINDS), abs=0.032)


def test_only_onnxruntimes_own_answer_is_right() -> None:
    model, images = "mlp", mixture._images(random.Random(0), 3)
    expected = mixture._expected(model, images)
    check = mixture._raw_check(model, images)
    assert check(expected.tobytes())
    assert check((expected + TOLERANCE / 2).astype(np.float32).tobytes())
    assert not check((expected + 2 * TOLERANCE).astype(np.float32).tobytes())
    assert not check(expected[::-1].tobytes()), "the rows of a batch are swapped"
    assert not check(expected[:2].tobytes())
    assert not check(b"")


def test_a_json_answer_must_have_every_label_of_every_row() -> None:
    model, images = "mlp", mixture._images(random.Random(1), 2)
    rows = mixture._expected(model, images).tolist()
    labels = [{"probabilities": dict(zip("0123456789", row, strict=True))} for row in rows]
    check = mixture._json_check(model, images)
    assert check(json.dumps({"predictions": labels}).encode())
    assert not check(json.dumps({"predictions": labels[:1]}).encode())
    assert not check(json.dumps({"predictions": labels[::-1]}).encode())
    assert not check(b'{"error": "no"}')
    assert not check(b"not JSON")


@pytest.mark.parametrize(("status", "accepted"), [(503, True), (429, True), (500, False), (400, False)])
def test_a_short_deadline_may_be_missed_but_nothing_else(status: int, accepted: bool) -> None:
    late = next(each for each in mixture.requests(0) if each.kind == "deadline")
    assert late.accepts(Answer(status, b"", close=False)) is accepted


def test_the_jpeg_has_as_many_scans_as_it_says_and_decodes() -> None:
    content = payloads.jpeg_of_scans(20)
    assert content.count(payloads.START_OF_SCAN) == 20
    Image.open(io.BytesIO(content)).load()


def test_the_bodies_of_the_attacks_are_small_enough_to_be_accepted() -> None:
    for body in (payloads.unknown_keys(1000), payloads.nested_lists(1000)):
        assert json.loads(body)
        assert 900 < len(body) < 1100
    form, _ = payloads.form_of(100)
    assert len(form) < payloads.BODY_BYTES
    assert Image.open(io.BytesIO(payloads.large_png())).size == (4000, 4000)


def test_the_broken_model_raises_for_a_bad_row_and_for_its_whole_batch() -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(
        broken_model.graph().SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    good = np.full((3, 28, 28), broken_model.GOOD, np.uint8)
    assert session.run(None, {"images": good})[0].argmax(1).tolist() == [broken_model.GOOD] * 3
    good[1] = broken_model.BAD
    with pytest.raises(Exception, match="out of data bounds"):
        session.run(None, {"images": good})


def test_a_peak_is_watched_from_the_beginning_of_the_block() -> None:
    me = Resources([psutil.Process()])
    pages = 16_000
    size = pages * mmap.PAGESIZE
    with mmap.mmap(-1, size) as held:  # an array could lie in memory that the process has kept
        held[:: mmap.PAGESIZE] = bytes(pages)
        assert me.rss() > size
    with me.watching() as watch, mmap.mmap(-1, size) as held:
        held[:: mmap.PAGESIZE] = bytes(pages)
    # Within a tenth: other threads of the test process allocate too.
    assert watch.grown == pytest.approx(size, rel=0.1)
    assert watch.exited == 0
    assert me.descriptors() > 2
    assert me.threads() >= 1


def test_a_process_that_exits_is_counted_with_the_peak_that_it_had() -> None:
    code = "import sys; print(flush=True); sys.stdin.readline(); b = b'x' * 64_000_000; sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()  # it has started, and its memory is that of Python
        with Resources([psutil.Process(process.pid)]).watching() as watch:
            process.stdin.write(b"\n")
            process.stdin.flush()
            while watch.grown < 60_000_000:
                time.sleep(WATCH_SECONDS)
            process.kill()
            process.wait()
    assert watch.grown == pytest.approx(64_000_000, rel=0.1)
    assert watch.exited == 1


def test_a_gauge_is_the_sum_over_its_labels() -> None:
    text = '# HELP a b\na{model="x"} 2.0\na{model="y"} 3\nab 7\n'
    assert gauge(text, "a") == 5
    assert gauge(text, "ab") == 7
    assert gauge(text, "c") is None
