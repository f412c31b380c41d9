"""Agent checks: the weights, and the port, asked as HAProxy asks it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.addresses import open_listeners
from service.observability.agent_check import (
    MOST_CHECKS,
    AgentPort,
    AgentWeight,
    State,
    percent_at,
    state_of,
)
from service.observability.load import Load

UTILIZATIONS = st.floats(0, 3)


def percent(weight: AgentWeight) -> int:
    return int(weight.line("up").removeprefix(b"up ").removesuffix(b"%\n"))


def followed(*steps: tuple[Load, int]) -> int:
    """The weight after these loads, each for some seconds."""
    weight, now = AgentWeight(0.0), 0.0
    for load, seconds in steps:
        for _ in range(seconds):
            now += 1.0
            weight.update(load, now)
    return percent(weight)


def test_the_weight_is_the_documented_formula() -> None:
    expected = [(0.0, 100), (0.25, 80), (0.5, 50), (1.0, 20), (2.0, 6), (3.0, 3)]
    assert [(utilization, round(percent_at(utilization))) for utilization, _ in expected] == expected


@given(UTILIZATIONS, UTILIZATIONS)
def test_the_busier_of_two_services_never_has_the_higher_weight(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert percent_at(low) >= percent_at(high) > 0


def test_a_steady_load_ends_at_its_weight() -> None:
    assert followed((Load(work=0.5), 200)) == 50
    assert followed((Load(work=0.95, shed=0.2, queued=1.0), 200)) == 3


def test_a_new_service_begins_below_an_idle_one() -> None:
    assert percent(AgentWeight(0.0)) == 34 < followed((Load(), 10)) < followed((Load(), 200)) == 100


def test_the_weight_falls_sooner_than_it_rises() -> None:
    idle, full = (Load(), 200), (Load(work=1.0), 200)
    assert followed(idle, (Load(work=1.0), 5)) == 20 + round(80 / 2.718)
    assert followed(full, (Load(), 5)) < 40


def test_the_weight_follows_the_time_and_not_the_number_of_updates() -> None:
    often, once = AgentWeight(0.0), AgentWeight(0.0)
    for tenth in range(1, 101):
        often.update(Load(work=1.5), tenth / 10)
    once.update(Load(work=1.5), 10.0)
    once.update(Load(work=0.0), 10.0)  # no time has passed
    assert often.line("up") == once.line("up")


def test_the_weight_never_drains_by_itself() -> None:
    assert followed((Load(work=30.0, shed=1.0, queued=1.0), 500)) >= 1


@pytest.mark.parametrize(
    ("state", "line"),
    [("draining", b"up 0%\n"), ("down", b"down #the service is not ready\n"), ("up", b"up 34%\n")],
)
def test_each_state_has_its_line(state: State, line: bytes) -> None:
    assert AgentWeight(0.0).line(state) == line


def test_a_service_that_stops_is_draining_whether_it_is_ready_or_not() -> None:
    assert state_of(ready=True, stopping=True) == state_of(ready=False, stopping=True) == "draining"
    assert state_of(ready=False, stopping=False) == "down"
    assert state_of(ready=True, stopping=False) == "up"


@asynccontextmanager
async def answering(state: State) -> AsyncIterator[tuple[AgentPort, int]]:
    listeners = open_listeners("127.0.0.1", 0)
    agent = AgentPort(listeners, lambda: state)
    await agent.start()
    try:
        yield agent, listeners[0].getsockname()[1]
    finally:
        agent.close()


async def ask(port: int, sent: bytes = b"") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_each_connection_gets_one_line_whatever_it_sends() -> None:
    async with answering("up") as (agent, port):
        assert await ask(port) == b"up 34%\n"
        agent.update(Load(work=1.0))
        assert await ask(port, b"digits\n" * 100) == b"up 34%\n"


async def test_idle_connections_beyond_the_limit_are_closed_unanswered() -> None:
    async with answering("up") as (_, port):
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MOST_CHECKS)]
        for reader, _ in idle:
            assert await reader.readline() == b"up 34%\n"
        assert await ask(port) == b""
        for _, writer in idle:
            writer.close()
        while await ask(port) == b"":  # the service sees that they are closed a moment later
            await asyncio.sleep(0.01)


async def test_a_closed_port_refuses_checks() -> None:
    async with answering("up") as (agent, port):
        agent.close()
        await asyncio.sleep(0)
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            pass
