"""The listener that tests of HTTP share."""

import asyncio
import gc
import socket
import warnings
from pathlib import Path

from service.serving.local import LocalPredictor
from tests.support.listener import listening


async def test_a_connection_that_nobody_used_is_closed_with_the_listener(
    predictor: LocalPredictor, tmp_path: Path
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for turns in range(4):
            async with listening(predictor, tmp_path) as listener:
                with socket.create_connection(("127.0.0.1", listener.port)):
                    for _ in range(turns):
                        await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        gc.collect()
    assert [str(each.message) for each in caught] == []
