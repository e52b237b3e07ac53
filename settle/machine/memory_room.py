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


class MemoryRoom:
    """room: bytes that this process should hold at most. file: mapped by it, whose pages may go."""

    def __init__(self, room: int, file: str) -> None:
        self._room, self._file = room, os.path.realpath(file)
        self._madvise = ctypes.CDLL(None).madvise
        self._madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def keep(self) -> None:
        """Let all pages of the file go where the process holds too much.

        Of a file that is read from its beginning to its end again and again, the kernel has taken each page before it
        is read once more.
        """
        if _resident() > self._room:
            for line in Path("/proc/self/maps").read_text().splitlines():
                if line.endswith(self._file):
                    first, last = (int(address, 16) for address in line.split()[0].split("-"))
                    self._madvise(first, last - first, PAGE_OUT)


def keep_within(room: int, file: str) -> None:
    """Hold no more than `room` bytes from now on, as far as pages of `file` can go.

    Raises OSError where the system cannot do that.
    """
    if not Path("/proc/self/maps").exists():
        raise OSError("only Linux can take pages of a file out of memory")
    threading.Thread(target=_watch, args=(MemoryRoom(room, file),), name="memory-room", daemon=True).start()


def _watch(room: MemoryRoom) -> None:
    while True:
        room.keep()
        time.sleep(INTERVAL)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
