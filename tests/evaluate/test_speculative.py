"""What a draft is worth, told of llama.cpp's figures: a fake engine gives known ones, by a clock that it turns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.evaluate import speculative
from settle.evaluate.speculative import SEARCHED, Pair, Proposing, measure_pair
from settle.infer.client import TimedAnswer
from tests.records import into

WAYS = (Proposing(2), Proposing(4), Proposing(6, 0.5))
SPEED = {None: 1.0, 2: 1.5, 4: 2.0, 6: 0.5}  # by how many tokens are proposed


@pytest.mark.parametrize(
    ("accepted", "says"),
    [(0.75, "75% of what it proposes, up to 4 tokens at a time, is right"), (None, "it is never sure enough")],
)
def test_a_pair_in_one_sentence(accepted, says):
    pair = Pair(10.0, 16.0, Proposing(4), accepted, 3, 90, ((1, 7),), (1.6,), {})
    assert pair.headline.startswith("1.60 times as fast") and says in pair.headline
    assert pair.headline.endswith("2 of 3 answers are the same") and pair.to_json()["accepted"] == accepted


class Engines:
    """Engines whose answers to the prompt [n] are given, 1 second a token; what they were asked is noted."""

    def __init__(self, answers: Callable[[int], list[int]], seconds: float = 1.0) -> None:
        self.answers, self.seconds, self.now = answers, seconds, 0.0
        self.asked: list[tuple[int | None, list[int]]] = []
        self.contexts: set[int] = set()

    def monotonic(self) -> float:
        return self.now

    def __call__(self, path: Path, context: int, threads: int | None, draft: Any) -> "Engines":
        self.contexts.add(context)
        self.asked.append((draft and draft.tokens, []))
        return self

    def __enter__(self) -> "Engines":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def timed(self, prompt: list[int], max_tokens: int) -> TimedAnswer:
        tokens, asked = self.asked[-1]
        if max_tokens == 8:  # the first reading
            return TimedAnswer([], 0.0, 0, 0)
        asked.append(prompt[0])
        ids = self.answers(prompt[0])[:max_tokens]
        seconds = self.seconds * max(1, len(ids) - 1) / SPEED[tokens]
        self.now += seconds
        return TimedAnswer(ids, seconds, 4 * bool(tokens), 3 * bool(tokens))


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Engines, Pair, list[str]]]:
    def measured(
        prompts: int, answers: Callable[[int], list[int]] = lambda n: [n] * 11, **options: Any
    ) -> tuple[Engines, Pair, list[str]]:
        engines = Engines(answers)
        monkeypatch.setattr(speculative, "Engine", engines)
        monkeypatch.setattr(speculative, "time", engines)
        heard: list[Any] = []
        asked = [[n, 0, 0] for n in range(prompts)]
        events = Events(listeners=[into(heard)])
        pair = measure_pair(Path("m"), Path("d"), asked, 20, events, **{"ways": WAYS, **options})
        return engines, pair, [event["text"] for event in heard]

    return measured


def test_the_best_way_is_measured_on_prompts_that_did_not_choose_it(measure: Any) -> None:
    engines, pair, said = measure(10)
    first = list(range(SEARCHED))
    assert engines.asked == [(None, list(range(10))), (2, first), (4, first), (6, first), (4, [6, 7, 8, 9])]
    assert engines.contexts == {3 + 20 + 6 + 8}
    assert pair.way == Proposing(4) and pair.searched == {way: SPEED[way.tokens] for way in WAYS}
    assert (pair.alone, pair.together, pair.speed_up, pair.accepted) == (1.0, 2.0, 2.0, 0.75)
    assert (pair.prompts, pair.tokens, pair.differing, pair.per_prompt) == (4, 44, (), (2.0,) * 4)
    assert said[1] == "proposing up to 4 tokens at a time: 2.00 times as fast" and len(said) == 3
    told = pair.to_json()
    assert told["speed_up_median"] == 2.0 and told["identical"] == 4
    assert told["searched"][1] == {"tokens": 4, "sure": 0.0, "speed_up": 2.0}


def test_few_prompts_choose_and_are_measured(measure: Any) -> None:
    engines, pair, _ = measure(3)
    assert engines.asked[-1] == (4, [0, 1, 2]) and pair.prompts == 3


def test_one_way_is_not_searched_for(measure: Any) -> None:
    engines, pair, said = measure(8, ways=(Proposing(2),))
    assert engines.asked == [(None, list(range(8))), (2, list(range(8)))]
    assert pair.searched == {} and pair.way == Proposing(2) and not said


def test_prompts_without_an_answer_do_not_choose(measure: Any) -> None:
    engines, _, _ = measure(9, lambda n: [n] if n in (1, 3) else [n] * 11)
    assert engines.asked[1] == (2, [0, 2, 4, 5, 6, 7])
    with pytest.raises(DataError, match="nothing to say to 3 prompts"):
        measure(3, lambda n: [n])


def test_what_there_is_no_time_for_is_left_out_and_said(measure: Any) -> None:
    """10 seconds a prompt: after 30 of 100 the model alone is done, after 70 the search."""
    engines, pair, said = measure(10, seconds=100.0)
    assert [asked for _, asked in engines.asked] == [[0, 1, 2, 3]] * 2 + [[0, 1, 2, 3]] * 2
    assert pair.way == Proposing(4) and len(pair.searched) == 2
    assert said[-1] == "the time had room for 4 of 10 prompts and 2 of 3 ways to propose"
    engines, _, said = measure(10, seconds=1.0)  # two prompts and one way are asked however little time there is
    assert engines.asked == [(None, [0, 1]), (2, [0, 1]), (2, [0, 1])]


def test_answers_are_compared_token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(ids: list[int], seconds: float) -> TimedAnswer:
        return TimedAnswer(ids, seconds, 0, 0)

    alone = [answer([1, 2, 3], 4.0), answer([1, 2, 3], 4.0), answer([4], 1.0), answer([5, 6], 2.0)]
    together = [answer([1, 2, 3], 1.0), answer([1, 9, 3], 1.0), answer([4], 1.0), answer([5, 6, 7], 1.0)]
    pair = speculative._pair(alone, together, Proposing(4), {})
    assert pair.differing == ((1, 1), (3, 2)) and pair.per_prompt == (4.0, 4.0, 4.0)
    assert pair.accepted is None and pair.alone == 5 / 11 and pair.together == 6 / 4
    assert pair.to_json()["differing"] == [{"prompt": 1, "token": 1}, {"prompt": 3, "token": 2}]
