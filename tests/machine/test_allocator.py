"""Freed memory is kept where the C library allows it, and given back when it has outgrown what a step needs."""

import resource
import subprocess
import sys

import pytest

from settle.machine import FreedMemory

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


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the C library of this system keeps nothing")


@on_linux
def test_given_back_when_it_has_outgrown_a_step() -> None:
    held, trims = [0], []
    freed = FreedMemory(lambda: held[0])
    freed._trim = trims.append
    for number, expected in ((1000, 0), (1050, 0), (1070, 1), (1040, 1), (1090, 1), (1110, 2), (900, 2), (1105, 3)):
        held[0] = number
        freed.after_step()
        assert len(trims) == expected, number


@on_linux
def test_a_larger_step_that_began_with_nothing_freed_is_what_is_needed() -> None:
    held, trims = [1000], []
    freed = FreedMemory(lambda: held[0])
    freed._trim = trims.append
    freed.after_step()
    held[0] = 2000
    freed.after_step()
    freed.after_step()
    assert freed.needed == 2000 and len(trims) == 1
    freed.after_step()
    assert len(trims) == 1
