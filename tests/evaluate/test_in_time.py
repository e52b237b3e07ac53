"""Questions asked in the time there is, by a clock that the test turns."""

from types import SimpleNamespace
from typing import Any

import pytest

from settle.base.event_log import Events
from settle.evaluate.compare import candidate
from settle.evaluate.compare.candidate import AT_ONCE, FIRST, LEAST_SECONDS, TimeLeft, ask_in_time
from settle.evaluate.compare.cases import Case, spread
from tests.records import into


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(candidate, "time", clock)
    return clock


def candidates(clock: Clock, seconds: float) -> tuple[Any, tuple[Any, Any]]:
    """Two that take `seconds` a question each, and what they were asked, group by group."""
    asked: list[tuple[str, list[int]]] = []

    def answering(name: str) -> Any:
        def answers(questions: list[Case], max_tokens: int, on_progress: Any) -> list[str]:
            asked.append((name, [question.number for question in questions]))
            clock.now += seconds * len(questions)
            on_progress(len(questions))
            return [f"{name} {question.number}" for question in questions]

        return SimpleNamespace(name=name, answers=answers)

    return asked, (answering("base"), answering("tuned"))


def questions(number: int) -> list[Case]:
    return [Case(i, "", ({"role": "user", "content": "?"},)) for i in range(number)]


def test_without_a_limit_each_answers_all(clock: Clock) -> None:
    asked, both = candidates(clock, 1.0)
    heard: list[Any] = []
    kept, (base, tuned) = ask_in_time(both, questions(20), 5, Events(listeners=[into(heard)]), TimeLeft(None))
    assert asked == [("base", list(range(20))), ("tuned", list(range(20)))]
    assert [case.number for case in kept] == list(range(20))
    assert base == [f"base {i}" for i in range(20)] and tuned == [f"tuned {i}" for i in range(20)]
    assert [(e["what"], e["done"], e["total"]) for e in heard] == [("base answers", 20, 20), ("tuned answers", 20, 20)]


def test_with_time_enough_they_take_turns_and_answer_all(clock: Clock) -> None:
    asked, both = candidates(clock, 0.01)
    kept, (base, tuned) = ask_in_time(both, questions(60), 5, Events(), TimeLeft(1000.0))
    assert [len(numbers) for _, numbers in asked] == [FIRST, FIRST] + [AT_ONCE, AT_ONCE] * 3 + [4, 4]
    assert all(one[1] == other[1] and one[0] != other[0] for one, other in zip(asked[::2], asked[1::2], strict=True))
    assert [case.number for case in kept] == list(range(60)) and base[7] == "base 7" and tuned[59] == "tuned 59"


@pytest.mark.parametrize(
    ("seconds", "share", "answered"),
    [(49.0, 1.0, 24), (98.0, 0.5, 24), (41.0, 1.0, 16), (10.0, 1.0, 8), (0.0, 1.0, 8)],
)
def test_they_stop_where_another_group_would_be_late(clock: Clock, seconds: float, share: float, answered: int) -> None:
    """Two seconds a question: eight are asked in any case, then as many eights as the time has room for."""
    asked, both = candidates(clock, 1.0)
    heard: list[Any] = []
    events = Events(listeners=[into(heard)])
    kept, (base, tuned) = ask_in_time(both, questions(100), 5, events, TimeLeft(seconds), share)
    assert len(kept) == len(base) == len(tuned) == answered
    assert clock.now <= 1000.0 + max(share * seconds, 2 * FIRST)
    numbers = [case.number for case in kept]
    assert numbers == sorted(numbers) and base == [f"base {i}" for i in numbers]
    # evenly spread: no gap is much longer than the mean one
    gaps = [b - a for a, b in zip([0, *numbers], [*numbers, 100], strict=True)]
    assert max(gaps) <= 2.7 * 100 / answered
    assert (heard[-1]["done"], heard[-1]["total"]) == (answered, answered)


def test_time_that_is_left(clock: Clock) -> None:
    left = TimeLeft(10.0)
    assert left.share(0.25) == 1002.5 and left.allows(0.2)
    clock.now += 2.0
    assert left.share(0.5) == 1006.0 and not left.allows(0.2) and left.allows(LEAST_SECONDS / 8)
    assert TimeLeft(-5.0).share(1.0) == 1002.0
    assert TimeLeft(None).share(0.5) is None and TimeLeft(None).allows(0.0)


def test_few_of_many_are_evenly_spread() -> None:
    assert spread(list(range(10)), 4) == [0, 2, 5, 7]
    assert spread(list(range(4)), 4) == [0, 1, 2, 3] == spread(list(range(4)), 9)
