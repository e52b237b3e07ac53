"""What a race shows, in words and as JSON."""

import math
from collections.abc import Sequence

from settle.base.statistics import Interval
from settle.evaluate.compare.sample_size import next_step
from settle.experiment.race import Outcome


def value_text(value: float, is_share: bool) -> str:
    """Return a score: 85 %, or 0.850 where it is no share."""
    if math.isnan(value):
        return "–"
    return f"{100 * value:.0f} %" if is_share else f"{value:.3f}"


def difference_text(value: float, is_share: bool) -> str:
    """Return a difference of scores: 5 points, or 0.050 where they are no shares."""
    return f"{round(100 * value)} points" if is_share else f"{value:.3f}"


def range_text(difference: Interval, is_share: bool) -> str:
    """Return a difference with its interval: 5 points (95 %: 1 to 9)."""
    low, high = (difference_text(end, is_share).removesuffix(" points") for end in difference.ends[1:])
    return f"{difference_text(difference.value, is_share)} (95 %: {low} to {high})"


def may_be_ahead(outcome: Outcome, chosen: int, others: Sequence[int], is_share: bool, noun: str) -> str:
    """Say by how much one of the others may still be ahead of the chosen one, and the cheapest step to settle it.

    noun: of the rows.
    """
    nearest = max(others, key=lambda k: outcome.pair(k, chosen).difference.high)
    pair = outcome.pair(nearest, chosen)
    step = next_step(pair.difference, pair.rows, is_share, noun, outcome.error / len(outcome.pairs))
    ahead = difference_text(max(0.0, pair.difference.high), is_share)
    return f"{outcome.names[nearest]} may be up to {ahead} ahead, and {step}"


def pairs_json(outcome: Outcome, noun: str) -> list[dict[str, object]]:
    """Return all pairs for result.json. noun: of the rows, in the names of their numbers."""
    return [
        {
            "first": outcome.names[p.first],
            "second": outcome.names[p.second],
            "difference": p.difference.to_json(),
            "p": p.p_value,
            "shown": p.is_shown,
            "better": None if p.better is None else outcome.names[p.better],
            "early": p.early,
            noun: p.rows,
            f"more_{noun}": p.more,
        }
        for p in outcome.pairs
    ]
