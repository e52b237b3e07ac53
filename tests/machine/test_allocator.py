"""Freed memory is given back when what is held has outgrown what a step needs, and only then."""

import sys

import pytest

from settle.machine import FreedMemory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the C library of this system keeps nothing")


def test_given_back_when_it_has_outgrown_a_step() -> None:
    held, trims = [0], []
    freed = FreedMemory(lambda: held[0])
    freed._trim = trims.append
    for number, expected in ((1000, 0), (1050, 0), (1070, 1), (1040, 1), (1090, 1), (1110, 2), (900, 2), (1105, 3)):
        held[0] = number
        freed.after_step()
        assert len(trims) == expected, number


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
