"""How much memory and disk there is for us, the most that was ever used, and freed memory that is kept for reuse."""

import contextlib
import ctypes
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from settle.machine.cgroup import limits

_CLEAR_PEAK = "5"  # proc(5): resets the peak resident set size, VmHWM


@dataclass(frozen=True)
class Memory:
    """In bytes. `total` and `available` are already cut to the control group's limit."""

    total: int
    available: int
    limit: int | None


def memory(root: Path = Path("/")) -> Memory:
    """Return what this process may have in all, and what it can still take without swapping."""
    import psutil

    machine = psutil.virtual_memory()
    group = limits(root)
    if group.memory is None:
        return Memory(machine.total, machine.available, None)
    left = max(0, group.memory - (group.memory_used or 0))
    return Memory(min(machine.total, group.memory), min(machine.available, left), group.memory)


def disk_free(path: Path) -> int:
    """Bytes that can still be written where `path` is or will be."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def resident(pid: int | None = None) -> int:
    """Return the bytes of memory that this process, or another one, holds now; 0 when there is no such process.

    Mapped files that are in memory are included.
    """
    import psutil

    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.NoSuchProcess:
        return 0


def read_from_disk(pid: int | None = None) -> int:
    """Return the bytes that this process, or another one of ours, has read from a disk; 0 where not known.

    Pages of mapped files and of swap space are included.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        return int(process.io_counters().read_bytes) if hasattr(process, "io_counters") else 0
    except psutil.Error:
        return 0


class PeakMemory:
    """The most memory that the process has held since this was made.

    Exact on Linux, whose kernel lets a process reset its own high-water mark. Elsewhere the mark of the whole
    life of the process is all there is: `read()` gives it when it rose since then, otherwise the larger of
    what was held then and what is held now.
    """

    def __init__(self) -> None:
        with contextlib.suppress(OSError):  # not Linux, or not allowed: the fallback in read() holds
            Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
        self._mark, self._held = _high_water_mark(), resident()

    def read(self) -> int:
        mark = _high_water_mark()
        return mark if mark > self._mark else max(self._held, resident())


def _high_water_mark() -> int:
    """Return the peak resident bytes: of the time since the last reset on Linux, of the whole life elsewhere."""
    with contextlib.suppress(OSError), open("/proc/self/status", "rb") as status:  # Linux alone has it
        for line in status:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    if os.name == "nt":
        import psutil

        memory = psutil.Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # mallopt(3)
_GROWN = 1.06  # memory that steps may come to hold, in parts of what one of them needs


def keep_freed_memory() -> bool:
    """Let freed memory be used again instead of going back to the system; whether this C library can do that.

    A training step frees and allocates the same megabytes over and over. glibc returns blocks of that size to the
    kernel at once, and clearing fresh pages for the next ones takes a tenth or more of a small model's step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    options = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 1 << 26))
    return all(mallopt(option, value) for option, value in options)


class FreedMemory:
    """What `keep_freed_memory` keeps, given back to the system when it has fallen into pieces too small to be used.

    Steps of ever different sizes leave holes between their blocks; over a run that would double the memory it holds.
    """

    def __init__(self, held: Callable[[], int] = resident) -> None:
        self.held = held
        self.needed = 0  # bytes held behind a step that began with nothing freed
        self.is_fresh = True
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None

    def after_step(self) -> None:
        if self._trim is None:
            return
        held = self.held()
        if self.is_fresh:
            self.needed, self.is_fresh = max(self.needed, held), False
        elif held > _GROWN * self.needed:
            self._trim(0)
            self.is_fresh = True
