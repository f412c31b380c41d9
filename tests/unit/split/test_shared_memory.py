"""Shared memory, with both of its ends in this process; `test_killed_halves` has one end in another."""

import fcntl
import mmap
import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from service.errors import FrameError
from service.models.tensors import Array
from service.split.shared_memory import PAGE_BYTES, Extents, OwnMemory, PeerMemory

PAGES = 4

Ends = tuple[OwnMemory, PeerMemory]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Both ends of four pages; what the peer has done with is released."""
    own = OwnMemory(PAGES * PAGE_BYTES)
    peer = PeerMemory(own.fd, own.release)
    yield own, peer
    own.close_fd()


def test_extents_never_overlap_and_all_come_back() -> None:
    rng, extents, taken = random.Random(0), Extents(100), dict[int, int]()
    refused = 0
    for _ in range(2000):
        if taken and rng.random() < 0.5:
            start = rng.choice(list(taken))
            extents.give_back(start, taken.pop(start))
            continue
        size = rng.randint(1, 40)
        at = extents.take(size)
        if at is None:
            refused += 1
            continue
        assert 0 <= at <= 100 - size
        assert all(at + size <= other or other + taken[other] <= at for other in taken)
        taken[at] = size
    assert refused
    for start, size in taken.items():
        extents.give_back(start, size)
    assert extents.take(100) == 0


def test_arrays_of_any_layout_come_out_one_after_another(ends: Ends) -> None:
    own, peer = ends
    arrays: list[Array] = [
        np.arange(6, dtype=np.int64)[::2],
        np.zeros((0, 3), np.float32),
        np.ones((2, 2), bool),
    ]
    place = own.place(arrays)
    assert place is not None
    assert bytes(peer.body(*place)) == b"".join(array.tobytes() for array in arrays)


def test_a_region_is_free_once_nothing_of_the_peer_refers_to_it(ends: Ends) -> None:
    own, peer = ends
    place = own.place([np.arange(3000, dtype=np.float32)])
    assert place is not None
    rows = np.ndarray((30, 100), np.float32, peer.body(*place))
    part = rows[10:][5:].T
    del rows
    assert own.regions == 1
    assert part[0, 0] == 1500
    del part
    assert own.regions == 0


def test_an_array_in_the_memory_is_sent_where_it_is(ends: Ends) -> None:
    own, peer = ends
    filled = own.empty(3000)
    assert filled is not None
    filled[:] = 7
    rows = np.ndarray((30, 100), np.uint8, filled.data)
    del filled
    place = own.place([rows])
    assert place is not None
    assert place == own.place([rows])  # sent twice
    body, again = peer.body(*place), peer.body(*place)
    rows[0, 0] = 8
    assert (body[0], body[2999]) == (8, 7)
    del body, again
    assert own.regions == 1
    del rows
    assert own.regions == 0
    assert own.empty(1) is not None


def test_a_part_of_such_an_array_is_copied(ends: Ends) -> None:
    own, peer = ends
    filled = own.empty(3000)
    assert filled is not None
    filled[:] = np.arange(3000) % 100
    for part in (filled[1:], filled[::2]):
        place = own.place([part])
        assert place is not None
        assert place[0] >= PAGE_BYTES
        assert bytes(peer.body(*place)) == part.tobytes()


def test_full_memory_takes_no_more_until_a_region_is_free(ends: Ends) -> None:
    own, peer = ends
    page = [np.zeros(PAGE_BYTES, np.uint8)]
    bodies = []
    for _ in range(PAGES):
        place = own.place(page)
        assert place is not None
        bodies.append(peer.body(*place))
    assert own.place(page) is None
    assert own.empty(1) is None
    del bodies[1]
    assert own.place([np.zeros(PAGE_BYTES + 1, np.uint8)]) is None
    assert own.place(page) == (PAGE_BYTES, PAGE_BYTES)


@pytest.mark.parametrize("offset", [0, 1, PAGE_BYTES, -PAGE_BYTES])
def test_what_was_not_sent_cannot_be_released(ends: Ends, offset: int) -> None:
    own, _ = ends
    held = own.empty(10)
    with pytest.raises(FrameError, match=f"region at {offset} is released"):
        own.release(offset)
    assert held is not None


@pytest.mark.parametrize(
    ("offset", "size"), [(-1, 5), (0, 0), (PAGES * PAGE_BYTES - 1, 2), (PAGES * PAGE_BYTES, 1), (0, 2**70)]
)
def test_a_body_elsewhere_is_refused(ends: Ends, offset: int, size: int) -> None:
    _, peer = ends
    with pytest.raises(FrameError, match=f"body is in the bytes {offset}"):
        peer.body(offset, size)


def test_the_peer_can_neither_write_nor_cut_off(ends: Ends) -> None:
    own, peer = ends
    place = own.place([np.ones(9, np.uint8)])
    assert place is not None
    assert peer.body(*place).readonly
    with pytest.raises(PermissionError):
        mmap.mmap(own.fd, own.size)
    with pytest.raises(PermissionError):
        os.ftruncate(own.fd, PAGE_BYTES)
    with pytest.raises(PermissionError):
        os.pwrite(own.fd, b"x", 0)


def unsealed() -> int:
    fd = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, PAGE_BYTES)
    return fd


def empty() -> int:
    fd = os.memfd_create("empty", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return fd


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (unsealed, "memory has the seals 0x0, expected 0x7"),
        (lambda: os.open(Path(__file__), os.O_RDONLY), "descriptor is that of no memory"),
        (lambda: socket.socket().detach(), "descriptor is that of no memory"),
        (empty, "memory has 0 bytes"),
    ],
    ids=["unsealed", "a file", "a socket", "empty"],
)
def test_what_could_be_cut_off_is_not_mapped(make: Callable[[], int], message: str) -> None:
    fd = make()
    try:
        with pytest.raises(FrameError, match=message):
            PeerMemory(fd, lambda _: None)
    finally:
        os.close(fd)


def test_the_descriptors_and_the_memory_are_given_back() -> None:
    def used() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text()
        return len(list(Path("/proc/self/fd").iterdir())), maps.count("memfd:inkserve-bodies")

    before = used()
    own = OwnMemory(2 * PAGE_BYTES)
    peer = PeerMemory(own.fd, own.release)
    own.close_fd()
    array = own.empty(5)
    place = own.place([np.ones(5, np.uint8)])
    assert place is not None
    body = peer.body(*place)
    assert used() == (before[0] + 2, before[1] + 2)
    del own, peer
    assert body[4] == 1  # what refers to it keeps it
    del array, body
    assert used() == before
