"""Freed memory is kept where the C library allows it."""

import resource
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from settle.machine import keep_freed_memory
if not keep_freed_memory():
    sys.exit(3)
np.ones(1 << 22)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    np.ones(1 << 22)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip("this C library's allocator cannot be told")
    # fresh pages every time would be 50 arrays of 32 MiB
    assert int(done.stdout) < 50 * (32 << 20) // resource.getpagesize() // 20
