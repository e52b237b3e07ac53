"""Keeps a process within as much memory as it would have elsewhere: pages of a mapped file go, and are read again.

That is what Linux does with a file that is larger than the memory left for it. The kernel is told which pages to take
(madvise(2), MADV_PAGEOUT), so what they cost is real, and nothing else on the machine runs short. Python's own library
only: a child of llama.cpp loads this file by its path, without settle's other imports.
"""

import ctypes
import mmap
import os
import threading
import time
from pathlib import Path

INTERVAL = 0.002  # seconds between two looks at the memory
PAGE_OUT = 21  # MADV_PAGEOUT, since Linux 5.4
PIECE = 1 << 20  # bytes that go at once
MORE = 3  # part of the file that goes beside what is too much, as a divisor


class MemoryRoom:
    """room: bytes that this process should hold at most. file: mapped by it, whose pages may go."""

    def __init__(self, room: int, file: str) -> None:
        self._room, self._file = room, os.path.realpath(file)
        self._next = 0  # piece of the file: they go in turns, in the order in which a model reads its weights
        self._madvise = ctypes.CDLL(None).madvise
        self._madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def keep(self) -> None:
        """Looks once, and pages out what is too much and some more: a file that is read from its beginning to its end
        again and again loses most of what it has in memory before that is read once more."""
        excess = _resident() - self._room
        pieces = self._pieces() if excess > 0 else []
        for _ in range(min(len(pieces), -(-excess // PIECE) + len(pieces) // MORE)):
            self._next = (self._next + 1) % len(pieces)
            self._madvise(*pieces[self._next], PAGE_OUT)

    def _pieces(self) -> list[tuple[int, int]]:
        """Address and size of each piece of the file that is mapped."""
        pieces = []
        for line in Path("/proc/self/maps").read_text().splitlines():
            if line.endswith(self._file):
                first, last = (int(address, 16) for address in line.split()[0].split("-"))
                pieces += [(at, min(PIECE, last - at)) for at in range(first, last, PIECE)]
        return pieces


def keep_within(room: int, file: str) -> None:
    """From now on this process holds no more than `room` bytes as far as pages of `file` can go. Raises OSError where
    the system cannot do that."""
    if not Path("/proc/self/maps").exists():
        raise OSError("only Linux can take pages of a file out of memory")
    threading.Thread(target=_watch, args=(MemoryRoom(room, file),), name="memory-room", daemon=True).start()


def _watch(room: MemoryRoom) -> None:
    while True:
        room.keep()
        time.sleep(INTERVAL)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
