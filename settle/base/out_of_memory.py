"""Which errors say that memory ran out, what a process holds, and whether the kernel ended one for want of it."""

import contextlib
import errno
import os
import re
import time
from pathlib import Path

# of torch's allocators: on processors, on Windows, on CUDA and MPS
_SAYS = re.compile(r"can't allocate memory|not enough memory|out of memory|bad_alloc", re.IGNORECASE)
_TRIED = re.compile(r"tried to allocate (\d+(?:\.\d+)?) ?(bytes|KiB|MiB|GiB)?", re.IGNORECASE)
_UNITS = {"bytes": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_KILLED = re.compile(r"Out of memory: Killed process (\d+)|Memory cgroup out of memory: Killed process (\d+)")
KERNEL_LOG = Path("/dev/kmsg")


def missing_bytes(error: BaseException) -> int | None:
    """Bytes that could not be had when `error` was raised, 0 where it does not say; None for another error."""
    match error:
        case OSError(errno=errno.ENOMEM):
            return 0
        case MemoryError():
            pass
        case RuntimeError() if _SAYS.search(str(error)):
            pass
        case _:
            return None
    tried = _TRIED.search(str(error))
    return int(float(tried[1]) * _UNITS[(tried[2] or "bytes").lower()]) if tried else 0


def held_data() -> int:
    """Return the bytes of private memory that this process holds, used or not: what RLIMIT_DATA counts.

    It is 0 where the system does not say.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) << 10
    return 0


def limit_data(num_bytes: int) -> None:
    """Let this process take no more than that much private memory, where the system can do that (Linux)."""
    if Path("/proc/self/status").exists():
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def kernel_kills(log: Path = KERNEL_LOG) -> list[float]:
    """Epoch seconds at which the kernel ended a process for want of memory; none where its log cannot be read."""
    kills = []
    with contextlib.suppress(OSError):
        file = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
        booted = time.time() - time.monotonic()
        try:
            while record := os.read(file, 1 << 13):  # a record at a time, until there is none
                for line in record.decode("utf-8", "replace").splitlines():
                    head, _, text = line.partition(";")
                    if _KILLED.search(text):
                        kills.append(booted + int(head.split(",")[2]) / 1e6)
        finally:
            os.close(file)
    return kills
