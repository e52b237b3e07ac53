"""Makes the C library's allocator keep freed memory."""

import ctypes
import sys
from collections.abc import Callable

from settle.machine.memory import resident

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # mallopt(3)
_GROWN = 1.06  # memory that steps may come to hold, in parts of what one of them needs


def keep_freed_memory() -> bool:
    """Let freed memory be used again instead of going back to the system; whether this C library can do that.

    A training step frees and allocates the same megabytes over and over. glibc returns blocks of that size to the
    kernel at once, and clearing fresh pages for the next ones takes a tenth or more of a small model's step.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
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
        """Look, and give back if need be."""
        if self._trim is None:
            return
        held = self.held()
        if self.is_fresh:
            self.needed, self.is_fresh = max(self.needed, held), False
        elif held > _GROWN * self.needed:
            self._trim(0)
            self.is_fresh = True
