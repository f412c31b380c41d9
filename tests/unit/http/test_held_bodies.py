import pytest

from service.errors import BuffersFull
from service.http.held_bodies import HeldBodies


def test_bodies_are_counted_until_their_block_ends() -> None:
    bodies = HeldBodies(100)
    with bodies.hold() as first:
        first.add(bytes(60))
        with bodies.hold() as second:
            second.add(bytes(40))
            assert bodies.held == 100
        assert bodies.held == 60
    assert bodies.held == 0


def test_one_body_at_a_time_may_exceed_the_bound() -> None:
    bodies = HeldBodies(100)
    with bodies.hold() as large:
        large.add(bytes(60))
        large.add(bytes(60))
        large.add(bytes(10_000))
        assert bodies.held == 0
        with bodies.hold() as small:
            small.add(bytes(100))
            with pytest.raises(BuffersFull, match="bodies of 10220 bytes are waiting to be decoded"):
                small.add(bytes(1))
    with bodies.hold() as next_large:
        next_large.add(bytes(1000))
    assert bodies.held == 0


def test_a_rejected_body_makes_room() -> None:
    bodies = HeldBodies(100)
    with bodies.hold() as large:
        large.add(bytes(101))
        with bodies.hold() as other:
            other.add(bytes(80))
            with pytest.raises(BuffersFull):
                other.add(bytes(80))
        assert bodies.held == 0
        with bodies.hold() as third:
            third.add(bytes(100))
