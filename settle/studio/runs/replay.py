"""A run told again for people who see one for the first time: moments of it, and what it cost beside one answer."""

import math
from collections.abc import Mapping, Sequence
from typing import cast

from settle.base.errors import RunError
from settle.base.run import Run
from settle.base.run.result import Result
from settle.base.words.amounts import amount, count, duration, number
from settle.studio.command_child import read_module
from settle.studio.runs.feed import RunFeed

ANSWER_TOKENS = 200  # of one answer, a long paragraph
# Operations per parameter and token: forward and backward, and forward alone (Kaplan et al. 2020, section 2.1).
TRAINING_OPERATIONS, ANSWER_OPERATIONS = 6, 2
SEEN_SECONDS = 30.0
MOST_MOMENTS = 12


def moments(feed: RunFeed) -> list[int]:
    """Return steps worth looking at: the first, then each ten times as far, those with a sample, and the last."""
    last = feed.course.left.step
    tenfold = [10**power for power in range(8) if 10**power < last]
    sampled = [sample.step for sample in feed.samples]
    return sorted({0, *tenfold, *sampled, last})[-MOST_MOMENTS:]


def loss_then(feed: RunFeed, step: int) -> str:
    """Return the held-out loss of the nearest evaluation before, of which step it is, and what it means."""
    point = feed.curves["held-out"].until(step)
    if point is None:
        return ""
    loss = point.value
    choices = f"{count(round(math.exp(loss)))}" if loss < 30 else "countless"
    last = max((e.step for e in feed.course.evals if e.step <= step), default=step)
    where = "" if last == step else f" at step {last:,}, the last evaluation until then"
    return f"{loss:.3f} nats{where}: as unsure of each next token as between {choices} equally likely ones"


async def seen(run: Run, steps: Sequence[int]) -> Mapping[str, Mapping[str, object]]:
    """Return what the run read at each step; empty where the prepared data are gone, or are of no such kind."""
    arguments = [str(run.path), *map(str, steps)]
    try:
        found = await read_module("settle.studio.runs.seen_child", *arguments, seconds=SEEN_SECONDS)
    except RunError:
        return {}
    return cast(Mapping[str, Mapping[str, object]], found)


def cost_facts(feed: RunFeed, result: Result | None, num_parameters: object) -> list[tuple[str, str]]:
    """Return what the training took, and what one answer takes by the same arithmetic."""
    tokens, actual = feed.course.left.tokens, (result.actual if result else {})
    seconds, joules = number(actual.get("time")) or feed.seconds, number(actual.get("energy"))
    ratio = TRAINING_OPERATIONS * tokens / (ANSWER_OPERATIONS * ANSWER_TOKENS)
    size = number(num_parameters)
    training = f"{TRAINING_OPERATIONS * size * tokens:.2g} operations" if size else ""
    answer = f"{ANSWER_OPERATIONS * size * ANSWER_TOKENS:.2g} operations" if size else ""
    return [
        ("training", " · ".join(t for t in (duration(seconds), amount(joules, "J") if joules else "", training) if t)),
        (f"one answer of {ANSWER_TOKENS} tokens", " · ".join(
            t for t in (f"{joules / ratio:.2g} J" if joules and ratio else "", answer) if t)),
        ("training is worth", f"{count(ratio)} such answers" if ratio else ""),
    ]  # fmt: skip
