"""A child process that is kept running, with real processes."""

import asyncio
import signal
import sys

import pytest

from service.split import child_process
from service.split.child_process import Child

WAITS = "import signal; print('up', flush=True); signal.pause()"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAITS}"


class Spawner:
    """Starts a Python process and waits until it is up."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.pids: asyncio.Queue[int] = asyncio.Queue()
        self.ends = 0

    async def spawn(self) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", self.code, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        await process.stdout.readline()
        self.pids.put_nowait(process.pid)
        return process

    def ended(self) -> None:
        self.ends += 1


@pytest.mark.slow
async def test_a_process_that_dies_is_started_again_until_it_is_stopped() -> None:
    spawner = Spawner(WAITS)
    child = Child("child", spawner.spawn, spawner.ended)
    child.settled = True
    keeping = asyncio.ensure_future(child.keep())
    pids = set()
    for _ in range(3):
        pids.add(await spawner.pids.get())
        child.signal(signal.SIGKILL)
    pids.add(await spawner.pids.get())
    assert len(pids) == 4
    await child.stop(60)
    assert await keeping == -signal.SIGTERM
    assert spawner.ends == 4


async def delays(child: Child, spawner: Spawner, kills: int, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Kill the process as it starts, so often; what the log says of each restart."""
    child.settled = True
    keeping = asyncio.ensure_future(child.keep())
    for _ in range(kills):
        await spawner.pids.get()
        child.signal(signal.SIGKILL)
    await spawner.pids.get()
    await child.stop(60)
    await keeping
    return [line.rpartition("in ")[2] for line in caplog.messages if "restarting it" in line]


@pytest.mark.slow
async def test_the_first_restart_is_immediate_and_each_later_one_waits_longer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    spawner = Spawner(WAITS)
    child = Child("child", spawner.spawn, spawner.ended)
    assert await delays(child, spawner, 4, caplog) == ["0 s", "0.1 s", "0.2 s", "0.4 s"]


async def test_a_process_that_worked_for_a_while_is_restarted_at_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_process, "WORKING_SECONDS", 0.0)
    spawner = Spawner(WAITS)

    async def spawn() -> asyncio.subprocess.Process:
        process = await spawner.spawn()
        child.note_working()
        return process

    child = Child("child", spawn, spawner.ended)
    assert await delays(child, spawner, 3, caplog) == ["0 s", "0 s", "0 s"]


async def test_a_process_that_cannot_start_is_not_tried_again() -> None:
    spawner = Spawner("raise SystemExit(3)")
    child = Child("child", spawner.spawn, spawner.ended)
    assert await child.keep() == 3
    assert spawner.ends == 1


async def test_a_process_that_does_not_heed_sigterm_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    spawner = Spawner(STUBBORN)
    child = Child("the child", spawner.spawn, spawner.ended)
    child.settled = True
    keeping = asyncio.ensure_future(child.keep())
    await spawner.pids.get()
    await child.stop(0.1)
    assert await keeping == -signal.SIGKILL
    assert "the child did not exit within 0.1 s; killing it" in caplog.text
    assert spawner.pids.empty()


async def test_a_stop_during_the_wait_before_a_start_ends_it() -> None:
    spawner = Spawner("raise SystemExit(3)")
    child = Child("child", spawner.spawn, spawner.ended)
    child.settled = True
    keeping = asyncio.ensure_future(child.keep())
    await spawner.pids.get()
    await child.stop(60)
    assert await keeping == 3
