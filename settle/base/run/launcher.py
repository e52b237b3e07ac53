"""How this process was started: when its command began, and which rank of how many torchrun made it. No torch.

A user's clock runs while Python still imports torch; a time budget counts that.
"""

import atexit
import contextlib
import functools
import os
import socket
import sys
import time
from dataclasses import dataclass
from typing import NoReturn

from settle.base.errors import UsageError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
NO_ID = ("", "none")  # what torchrun calls a job that was given no --rdzv-id


@dataclass(frozen=True)
class Launch:
    """A process that torchrun started, one rank of `size`."""

    rank: int
    size: int
    local_rank: int  # among the `local_size` of this host
    local_size: int
    address: str
    port: int
    restarts: int  # how often torchrun has started them again
    job: str  # one start of torchrun, with all restarts of it

    @property
    def is_local(self) -> bool:
        return self.local_size == self.size

    @property
    def hosts(self) -> int:
        """Machines, each of which has as many ranks."""
        return -(-self.size // self.local_size)


@functools.cache
def launched() -> Launch | None:
    """How torchrun started this process; None when it did not. Raises UsageError for variables that make no sense."""
    if not is_rank():
        return None
    try:
        rank, size, local_rank, local_size, port = (
            int(os.environ[name]) for name in VARIABLES if name != "MASTER_ADDR"
        )
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    except ValueError as e:
        raise UsageError(f"torchrun's variables are no numbers: {e}", f"unset {', '.join(VARIABLES)}") from None
    if size < 1 or not 0 <= rank < size or not 0 < local_size <= size or not 0 < port < 1 << 16:
        raise UsageError(
            f"rank {rank} of {size} ranks ({local_size} on this host, port {port}) cannot be",
            "start it with `torchrun --nproc-per-node 2 -m settle train ~/notes`, or unset RANK and WORLD_SIZE",
        )
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "")
    job = f"{socket.gethostname()}-{os.getppid()}-{_started(os.getppid())}" if run_id in NO_ID else run_id
    return Launch(rank, size, local_rank, local_size, os.environ["MASTER_ADDR"], port, restarts, job)


def is_rank() -> bool:
    """Return whether torchrun started this process, however well."""
    return all(name in os.environ for name in VARIABLES)


def leave(code: int) -> NoReturn:
    """End a rank without the end of Python, which aborts when a thread of gloo still gives back a tensor.

    torchrun would take a run that is finished for a failed one.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # who read it has gone
            stream.flush()
    os._exit(code)


def _started(pid: int | str) -> int:
    """When a process began, in ticks since the machine did; 0 where /proc does not say."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            return int(f.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


# --- when the present command began ---

_began: float | None = None


def note_start() -> None:
    """Note when the command line was called: by the age of the process where the system tells it, else now."""
    global _began
    _began = time.monotonic()
    if ticks := _started("self"):
        with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/uptime", "rb") as f:
            _began -= max(0.0, float(f.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK"))


def take_start() -> float | None:
    """`time.monotonic()` when the command began, for the first run of it; None for a further one, and in a library."""
    global _began
    began, _began = _began, None
    return began
