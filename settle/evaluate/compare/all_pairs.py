"""Tests of all pairs of several candidates, corrected together."""

from collections.abc import Sequence
from dataclasses import replace

from settle.base.statistics import PairedTest


def shaffer(tests: Sequence[PairedTest], candidates: int) -> list[PairedTest]:
    """Tests of all pairs of so many candidates, with p-values that are corrected together (Shaffer 1986): where two
    candidates differ, a third differs from one of them, so fewer claims can be false at once than Holm counts."""
    possible = _numbers_of_equal_pairs(candidates)
    adjusted, largest = list(tests), 0.0
    for rank, i in enumerate(sorted(range(len(tests)), key=lambda i: tests[i].p_value)):
        false_at_once = max(number for number in possible if number <= len(tests) - rank)
        largest = max(largest, min(1.0, tests[i].p_value * max(1, false_at_once)))
        adjusted[i] = replace(tests[i], adjusted_p=largest)
    return adjusted


def _numbers_of_equal_pairs(candidates: int) -> set[int]:
    """How many pairs can be equal, when candidates fall into groups that are alike."""
    if candidates < 2:
        return {0}
    sizes = range(1, candidates + 1)
    return {size * (size - 1) // 2 + rest for size in sizes for rest in _numbers_of_equal_pairs(candidates - size)}
