"""How many threads compute. Whatever computes asks here, and `--threads` is declared here, once.

Importing it loads no torch; what needs torch imports it when called.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

from pydantic import Field

from settle.base.run.launcher import launched
from settle.base.settings import Settings
from settle.machine.cores import cores
from settle.machine.openmp_wait import adapt_waiting

CONVENTION = "OMP_NUM_THREADS"  # what people and job schedulers set for every program; torch reads it when it loads
MOST_THREADS = 4096  # more than any machine has cores

_asked: list[int] = []  # what commands that run in this process were given, the newest last


class ThreadSettings(Settings):
    """The option of everything that computes."""

    threads: int | None = Field(
        None, gt=0, le=MOST_THREADS, description="CPU threads; as many as are fastest when not given"
    )

    def computing(self) -> contextlib.AbstractContextManager[None]:
        """For as long as it lasts, everything computes with so many threads."""
        return asked_threads(self.threads)


def num_threads(asked: int | None = None) -> int:
    """Return the threads to compute with: those asked for, else every core that this process may use.

    They are asked for here, by the command or by `OMP_NUM_THREADS`. Ranks of torchrun share the cores of their host:
    together they have no more threads.
    """
    launch = launched()
    ranks = 1 if launch is None else launch.local_size  # on this host, this one included
    share = max(1, cores().usable // ranks)
    if asked or _asked:
        number = asked or _asked[-1]
    elif ranks > 1 and _conventional() == 1:
        number = share  # torchrun says 1 where nobody chose
    else:
        number = _conventional() or share
    return number if ranks == 1 else min(number, share)


def commanded() -> int | None:
    """Return what the command that runs was given with `--threads`."""
    return _asked[-1] if _asked else None


def is_asked(asked: int | None = None) -> bool:
    """Return whether somebody decided on the number, so that nothing is left to choose."""
    return bool(asked or _asked or _conventional())


@contextlib.contextmanager
def asked_threads(threads: int | None) -> Iterator[None]:
    """Compute with so many threads in this process and its children for as long as it lasts; None decides nothing.

    Threads sleep while they wait for each other where other programs need the cores.
    """
    adapt_waiting(num_threads(threads))
    if threads is None:
        yield
        return
    before = os.environ.get(CONVENTION)
    _asked.append(threads)
    os.environ[CONVENTION] = str(threads)
    if "torch" in sys.modules:
        use_torch_threads(threads)
    try:
        yield
    finally:
        _asked.pop()
        if before is None:
            del os.environ[CONVENTION]
        else:
            os.environ[CONVENTION] = before


def use_torch_threads(threads: int | None = None) -> int:
    """Let torch compute with so many threads from here on; return the number."""
    import torch

    number = num_threads(threads)
    torch.set_num_threads(number)
    adapt_waiting(number)
    return number


def _conventional() -> int | None:
    given = os.environ.get(CONVENTION, "").partition(",")[0].strip()
    return int(given) if given.isdigit() and int(given) > 0 else None
