"""Two candidates asked as many questions as the time allows, the same ones, evenly spread over the rows."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from settle.base.event_log import Events
from settle.base.events import Progress
from settle.evaluate.compare.candidate import Answer, Candidate
from settle.evaluate.compare.cases import Case

T = TypeVar("T")
FIRST, AT_ONCE = 8, 16  # questions that are asked in any case, to see how long they take, and of each further turn
LEAST_SECONDS = 2.0  # what is worth beginning with


class TimeLeft:
    """The rest of `seconds` from now on; None: any time."""

    def __init__(self, seconds: float | None) -> None:
        self._until = None if seconds is None else time.monotonic() + max(0.0, seconds)

    def share(self, share: float) -> float | None:
        """Return `time.monotonic()` when this share of what is left is over; None for any time."""
        return None if self._until is None else time.monotonic() + share * (self._until - time.monotonic())

    def allows(self, share: float) -> bool:
        """Return whether this share of what is left is worth beginning with."""
        until = self.share(share)
        return until is None or until - time.monotonic() >= LEAST_SECONDS


def ask_in_time(
    candidates: tuple[Candidate, Candidate],
    questions: Sequence[Case],
    max_tokens: int,
    events: Events,
    time_left: TimeLeft,
    share: float = 1.0,
    what: str = "answers",
) -> tuple[list[Case], tuple[list[Answer], list[Answer]]]:
    """Return the questions that both answered within `share` of the time, in their order, and the answers of each.

    Without a limit each answers all of them, one candidate after the other. With one they take turns, so that what was
    asked of the one was asked of the other whenever the time ends.
    """
    until = time_left.share(share)
    questions = list(questions)
    if until is None:
        answers = [
            c.answers(questions, max_tokens, on_progress(events, f"{c.name} {what}", len(questions)))
            for c in candidates
        ]
        return questions, (answers[0], answers[1])
    order, began = spread_order(len(questions)), time.monotonic()
    asked: dict[int, tuple[Answer, Answer]] = {}
    both = f"{candidates[0].name} and {candidates[1].name}: {what}"
    while len(asked) < len(order):
        chosen = order[len(asked) : len(asked) + (AT_ONCE if asked else FIRST)]
        per_question = (time.monotonic() - began) / max(1, len(asked))
        if asked and time.monotonic() + per_question * len(chosen) > until:
            affordable = max(0, int((until - time.monotonic()) / per_question))
            chosen = chosen[: affordable // FIRST * FIRST]  # they are answered eight at a time
            if not chosen:
                break
        group = [questions[i] for i in chosen]
        base, tuned = (candidate.answers(group, max_tokens, lambda done: None) for candidate in candidates)
        asked |= dict(zip(chosen, zip(base, tuned, strict=True), strict=True))
        events.emit(Progress(what=both, done=len(asked), total=len(order)))
    if len(asked) < len(order):  # what the time had room for is all there is
        events.emit(Progress(what=both, done=len(asked), total=len(asked)))
    kept = sorted(asked)
    return [questions[i] for i in kept], ([asked[i][0] for i in kept], [asked[i][1] for i in kept])


def on_progress(events: Events, what: str, total: int) -> Callable[[int], None]:
    return lambda done: events.emit(Progress(what=what, done=done, total=total))


def spread(items: list[T], number: int) -> list[T]:
    """Return `number` of the items at most, evenly spread."""
    return [items[i * len(items) // number] for i in range(number)] if len(items) > number else items


def spread_order(number: int) -> list[int]:
    """Return 0 to `number` - 1 in an order of which every beginning is nearly evenly spread: by the golden ratio."""
    return sorted(range(number), key=lambda i: (i * 0.6180339887498949) % 1.0)
