"""The path of one raw image through our code: which files, how many calls. `pytest -s` prints the walk."""

import sys
from pathlib import Path
from types import FrameType

import service
from service.serving.local import LocalPredictor
from tests.support.http import exchange, image, request
from tests.support.listener import listening
from tests.support.live import connected

OURS = f"{Path(service.__file__).parent}/"
MOST_FILES, MOST_CALLS = 11, 70


async def test_a_raw_image_takes_a_short_path(predictor: LocalPredictor, tmp_path: Path) -> None:
    walk: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(OURS):
            walk.append((file.removeprefix(OURS), frame.f_code.co_qualname))

    raw = request(image(7).tobytes(), accept="application/octet-stream")
    async with listening(predictor, tmp_path) as listener, connected(listener.port) as connection:
        for _ in range(3):  # the head is known, the first batches have run
            await exchange(connection, raw)
        listener.connections.stop()  # its timer, which is not on the path
        sys.setprofile(note)
        try:
            assert (await exchange(connection, raw)).status == 200
        finally:
            sys.setprofile(None)
        assert listener.through_asgi == []
    for file, function in walk:
        print(f"{file:28} {function}")
    files = {file for file, _ in walk}
    print(f"{len(walk)} calls in {len(files)} files")
    assert ("onnx/engine.py", "Engine.begin") in walk  # the batch ran on the loop, where it is seen
    assert len(files) <= MOST_FILES, sorted(files)
    assert len(walk) <= MOST_CALLS
