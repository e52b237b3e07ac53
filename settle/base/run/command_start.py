"""When the present command began. A person's clock runs while Python still imports torch; a time budget counts that."""

import os
import time

_began: float | None = None


def note() -> None:
    """Note when the command line was called: by the age of the process where the system tells it, else now."""
    global _began
    _began = time.monotonic() - _age()


def take() -> float | None:
    """`time.monotonic()` when the command began, for the first run of it; None for a further one, and in a library."""
    global _began
    began, _began = _began, None
    return began


def _age() -> float:
    """Seconds since the process was started, by /proc; 0 where there is none."""
    try:
        with open("/proc/self/stat", "rb") as f:
            ticks = int(f.read().rpartition(b")")[2].split()[19])
        with open("/proc/uptime", "rb") as f:
            uptime = float(f.read().split()[0])
        return max(0.0, uptime - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
