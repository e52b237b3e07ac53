"""How the threads of OpenMP wait for each other: spinning while the machine is theirs, asleep while others use it.

A thread that spins for a moment finds the next piece of work soonest. Where another program needs the core, it holds up
the very thread that it waits for. GNU's OpenMP (libgomp, what torch and llama.cpp use on Linux) reads how long to spin
once, and spins hardly at all while a process has more of its threads than there are cores. A second team, which only
sleeps, makes it so. Nothing else changes: neither the number of threads that compute nor a bit of what they compute.

Python's own library only: a child of llama.cpp loads this file by its path, without settle's other imports.
"""

import contextlib
import ctypes
import os
import threading
import time
from pathlib import Path

INTERVAL = 0.5  # seconds between two readings of the load
BUSY, QUIET = 0.3, 0.15  # cores that others take of those we need: from and below which threads sleep, and spin again

_watching = threading.Lock()


class OthersLoad:
    """The cores that other programs have used since the last reading, of those that this process may run on."""

    def __init__(self, root: Path = Path("/proc")) -> None:
        self._root = root
        self._before = self._times()
        self.read_at = time.monotonic()

    def read(self) -> float:
        """In cores, 0 where the system does not say."""
        before, now = self._before, self._times()
        seconds = time.monotonic() - self.read_at
        self._before, self.read_at = now, time.monotonic()
        if before is None or now is None or seconds <= 0:
            return 0.0
        return max(0.0, (now[0] - before[0] - (now[1] - before[1])) / seconds)

    def _times(self) -> tuple[float, float] | None:
        """Seconds of work on all cores that we may run on, and those of this process alone."""
        try:
            lines = (self._root / "stat").read_text().splitlines()
            allowed = os.sched_getaffinity(0)
            ticks = os.sysconf("SC_CLK_TCK")
        except (OSError, AttributeError, ValueError):
            return None
        work = 0
        for line in lines:
            name, *fields = line.split()
            if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in allowed:
                user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
                work += user + nice + system + irq + softirq + steal
        return work / ticks, time.process_time()


def adapt_waiting(threads: int) -> None:
    """From now on threads sleep while they wait for each other as long as other programs need their cores.

    threads: that compute. Does nothing where the system or the OpenMP library is another one. One watch a process.
    """
    if threads > 1 and hasattr(os, "sched_getaffinity") and _watching.acquire(blocking=False):
        threading.Thread(target=_watch, args=(threads,), name="openmp-wait", daemon=True).start()


class SleepingTeam:
    """A team of OpenMP threads that does nothing: while there is one, waiting threads sleep soon."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library, self._leave, self._made = library, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._sleep, name="openmp-sleep", daemon=True)
        self._thread.start()
        self._made.wait()

    def end(self) -> None:
        self._leave.set()
        self._thread.join()

    def _sleep(self) -> None:
        # any function of C serves as the work, which is to return at once
        nothing = ctypes.cast(self._library.omp_get_level, ctypes.c_void_p)
        self._library.GOMP_parallel(nothing, None, (os.cpu_count() or 1) + 1, 0)
        self._made.set()
        self._leave.wait()


def libraries() -> list[ctypes.CDLL]:
    """GNU's OpenMP as this process has loaded it: a package may bring its own."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[-1] for line in lines if "/libgomp" in line}
    loaded = []
    for path in sorted(paths):
        with contextlib.suppress(OSError):
            loaded.append(ctypes.CDLL(path))
    return [library for library in loaded if hasattr(library, "GOMP_parallel")]


def _watch(threads: int) -> None:
    load, teams = OthersLoad(), list[SleepingTeam]()
    while True:
        time.sleep(INTERVAL)
        # cores that we and others need, and are not there
        missing = load.read() + threads - len(os.sched_getaffinity(0))
        if not teams and missing > BUSY:
            teams = [SleepingTeam(library) for library in libraries()]
        elif teams and missing < QUIET:
            while teams:
                teams.pop().end()
