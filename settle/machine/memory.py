"""How much memory and disk there is for us, and the most that was ever used."""

import shutil
import sys
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
    """The most memory that the process held since `start()`.

    Exact on Linux, whose kernel lets a process reset its own high-water mark. Elsewhere the mark of the whole
    life of the process is all there is: `read()` gives it when it rose since `start()`, otherwise the larger of
    what was held at `start()` and what is held now.
    """

    def __init__(self) -> None:
        self._mark = self._held = 0

    def start(self) -> "PeakMemory":
        try:
            Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
        except OSError:
            pass  # not Linux, or not allowed: the fallback in read() holds
        self._mark, self._held = _high_water_mark(), resident()
        return self

    def read(self) -> int:
        """Peak bytes of the process since `start()`."""
        mark = _high_water_mark()
        return mark if mark > self._mark else max(self._held, resident())


def _high_water_mark() -> int:
    """Peak resident bytes: of the time since the last reset on Linux, of the whole life elsewhere."""
    try:
        with open("/proc/self/status", "rb") as status:
            for line in status:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
