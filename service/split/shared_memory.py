"""Memory that one process fills and another reads, so that large bodies cross without the kernel's copies.

The side that fills it makes it, and passes its descriptor over their connection; the other can only read it.
Linux keeps it until both have unmapped it, or have exited. Knows nothing of frames.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import weakref
from bisect import bisect
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.errors import FrameError
from service.models.tensors import Array

# Of Linux's fcntl.h: Python has these only on Linux, and the last one not at all.
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW, _F_SEAL_FUTURE_WRITE = 1, 2, 4, 16

SEALS = _F_SEAL_SEAL | _F_SEAL_SHRINK | _F_SEAL_GROW
"""What the reader insists on: reading what the other side has cut off would kill it with SIGBUS."""

PAGE_BYTES = mmap.PAGESIZE


class OwnMemory:
    """Memory that this process fills, in regions of any size. Lives on the event loop.

    Memory is used only once it is written to, and lower addresses first: what is in use is what has been in
    use at once. A region is free again when the peer has released it as often as it was sent, and its array
    here, if it has one, is garbage.

    fd: for the peer; `close_fd` once it is passed on.
    Raises OSError where there is no such memory: not on Linux, or forbidden by seccomp.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.fd = _create(size)
        try:
            self._map = mmap.mmap(self.fd, size)
            _seal(self.fd)
        except BaseException:
            self.close_fd()
            raise
        self._start = _address(np.frombuffer(self._map, np.uint8))
        self._free = Extents(size)
        self._regions: dict[int, _Region] = {}
        self._held = 0
        self._garbage: deque[int] = deque()

    def close_fd(self) -> None:
        """Close the descriptor; the mapping stays, with one of its own."""
        os.close(self.fd)

    @property
    def regions(self) -> int:
        """How many regions are in use."""
        self._collect()
        return len(self._regions)

    def empty(self, size: int) -> NDArray[np.uint8] | None:
        """Return (size,) bytes of a region of their own, with any contents; None if there is no room."""
        offset = self._take(size, sent=0)
        if offset is None:
            return None
        self._held += 1
        array = np.frombuffer(self._map, np.uint8, size, offset)
        # Only noted: a collection may run this in any thread, and within any method here.
        weakref.finalize(array, self._garbage.append, offset).atexit = False
        return array

    def place(self, arrays: Sequence[Array]) -> tuple[int, int] | None:
        """Put arrays one after another into a region that is sent now; they are not copied if they have one.

        Returns its offset and its bytes, or None if there is no room.
        """
        size = sum(array.nbytes for array in arrays)
        if self._held and len(arrays) == 1 and arrays[0].flags.c_contiguous:
            offset = _address(arrays[0]) - self._start
            region = self._regions.get(offset)
            if region is not None and region.held and size <= region.size:
                region.sent += 1
                return offset, size
        found = self._take(size, sent=1)
        if found is None:
            return None
        end = found
        for array in arrays:
            start, end = end, end + array.nbytes
            np.frombuffer(self._map, array.dtype, array.size, start).reshape(array.shape)[...] = array
        return found, size

    def release(self, offset: int) -> None:
        """Note that the peer has released a region. Raises FrameError if it was not sent."""
        region = self._regions.get(offset)
        if region is None or not region.sent:
            raise FrameError(f"region at {offset} is released, expected one that was sent")
        region.sent -= 1
        self._free_unused(offset, region)

    def _take(self, size: int, sent: int) -> int | None:
        self._collect()
        size = -(-size // PAGE_BYTES) * PAGE_BYTES
        offset = self._free.take(size)
        if offset is not None:
            self._regions[offset] = _Region(size, sent, held=not sent)
        return offset

    def _collect(self) -> None:
        while self._garbage:
            offset = self._garbage.popleft()
            region = self._regions[offset]
            region.held = False
            self._held -= 1
            self._free_unused(offset, region)

    def _free_unused(self, offset: int, region: "_Region") -> None:
        if not region.sent and not region.held:
            del self._regions[offset]
            self._free.give_back(offset, region.size)


@dataclass(slots=True)
class _Region:
    """Memory in use. sent: how often the peer has it. held: whether an array here is in it."""

    size: int
    sent: int
    held: bool


class PeerMemory:
    """Memory that the peer fills, mapped read-only. The caller closes the descriptor.

    released: called with the offset of each body that is garbage, in whatever thread that happens.
    Raises FrameError if the peer could still cut it off, and OSError if the system maps no more.
    """

    def __init__(self, fd: int, released: Callable[[int], None]) -> None:
        try:
            seals = fcntl.fcntl(fd, _F_GET_SEALS)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise FrameError(f"descriptor is that of no memory with seals: {error}") from None
        if seals & SEALS != SEALS:
            raise FrameError(f"memory has the seals {seals:#x}, expected {SEALS:#x}")
        self.size = os.fstat(fd).st_size
        if not self.size:
            raise FrameError("memory has 0 bytes, expected some")
        self._map = mmap.mmap(fd, self.size, prot=mmap.PROT_READ)
        self._released = released

    def body(self, offset: int, size: int) -> memoryview:
        """Return the bytes of a region, which is released once nothing refers to them. Raises FrameError."""
        if not 0 <= offset < offset + size <= self.size:
            raise FrameError(
                f"body is in the bytes {offset}..{offset + size}, expected some among 0..{self.size}"
            )
        # Not a view of another array: its views would refer to that one, and this one would be garbage.
        array = np.frombuffer(self._map, np.uint8, size, offset)
        weakref.finalize(array, self._released, offset).atexit = False
        return array.data


class Extents:
    """The free parts of a range of addresses. Hands out the lowest that is large enough."""

    def __init__(self, size: int) -> None:
        self._free = [(0, size)]

    def take(self, size: int) -> int | None:
        """Return the start of `size` addresses, or None if no free part has so many."""
        for index, (start, end) in enumerate(self._free):
            if end - start > size:
                self._free[index] = start + size, end
                return start
            if end - start == size:
                del self._free[index]
                return start
        return None

    def give_back(self, start: int, size: int) -> None:
        """Free what was taken."""
        free, end = self._free, start + size
        index = bisect(free, (start, end))
        if index < len(free) and free[index][0] == end:
            end = free.pop(index)[1]
        if index and free[index - 1][1] == start:
            index -= 1
            start = free.pop(index)[0]
        free.insert(index, (start, end))


def _create(size: int) -> int:
    if not hasattr(os, "memfd_create"):
        raise OSError(errno.ENOSYS, "this system has no memfd_create")
    fd = os.memfd_create("inkserve-bodies", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _seal(fd: int) -> None:
    """Fix its size for ever, and let nobody map it writable any more, where Linux can do that (5.1)."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_FUTURE_WRITE)
    fcntl.fcntl(fd, _F_ADD_SEALS, SEALS)


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
