"""The C library's allocator, told to keep what is freed."""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # mallopt(3)


def keep_freed_memory() -> bool:
    """Let freed memory be used again instead of going back to the system; whether this C library can be told so.

    A training step frees and allocates the same megabytes over and over. glibc returns blocks of that size to the
    kernel at once, and clearing fresh pages for the next ones takes a tenth or more of a small model's step.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    told = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 1 << 26))
    return all(mallopt(option, value) for option, value in told)
