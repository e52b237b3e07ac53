"""The order that the trained judge gives the first hits."""

import pytest

from settle.retrieve.answer import retrieval
from settle.retrieve.answer.answer_judge import Reading
from settle.retrieve.answer.retrieval import JUDGE_WEIGHT, RERANKED, read_best
from settle.retrieve.index.catalogue.records import Passage
from settle.retrieve.search.hybrid_search import Hit


class Reader:
    """A judge for which a passage answers as far as its text says."""

    def read(self, question: str, passages: list[Passage]) -> list[Reading]:
        assert question == "asked" and len(passages) <= RERANKED
        return [Reading(float(passage.text), 0) for passage in passages]


def hits(*logits: float, gap: float = 0.01) -> list[Hit]:
    """The best first, each `gap` below the one before."""
    return [Hit(Passage(place, str(logit), (), 1), (), 1 - gap * place, 0.5, 0.0) for place, logit in enumerate(logits)]


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "answer_judge", lambda collection: Reader())


@pytest.mark.usefixtures("judged")
def test_the_first_hits_follow_the_judge_and_the_others_stay() -> None:
    given = hits(-9, -9, -9, 9, 9, 9)
    found, readings = read_best(None, "asked", given)  # type: ignore[arg-type]
    assert [hit.passage.id for hit in found] == [3, 0, 1, 2, 4, 5]
    assert readings == {number: Reading(9 if number == 3 else -9, 0) for number in range(RERANKED)}


@pytest.mark.usefixtures("judged")
def test_a_hit_that_is_found_much_better_stays_first() -> None:
    given = hits(-9, 9, gap=2 * JUDGE_WEIGHT)
    assert [hit.passage.id for hit in read_best(None, "asked", given)[0]] == [0, 1]  # type: ignore[arg-type]


def test_without_a_judge_the_order_is_that_of_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "answer_judge", lambda collection: None)
    given = hits(-9, 9)
    assert read_best(None, "asked", given) == (given, {})  # type: ignore[arg-type]
