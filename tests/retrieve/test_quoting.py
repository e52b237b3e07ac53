"""What is cited and quoted, by vectors and frequencies that the test makes up."""

from math import log
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from settle.documents.blocks import Place
from settle.retrieve.answer import citation_check, extractive
from settle.retrieve.answer.answer import Piece, Source
from settle.retrieve.answer.answer_judge import JudgeReading
from settle.retrieve.answer.citation_check import (
    CLEARER,
    MEANING,
    SUPPORTED,
    Checker,
    Support,
    _floor,
    word_weights,
)
from settle.retrieve.answer.extractive import HEADING, LATER, NEAR, READ, quotes
from settle.retrieve.index.catalogue import Occurrence, Passage


def source(number: int, text: str, headings: tuple[str, ...] = (), path: str = "") -> Source:
    piece = Piece(Passage(number, text, headings, 5), Occurrence(number, path or f"{number}.md", 0, Place(line=1)))
    return Source(number, (piece,))


class Vectors:
    """Texts lie where `of` says, by their first word."""

    def __init__(
        self, of: dict[str, list[float]], frequencies: dict[str, int] | None = None, number: int = 100
    ) -> None:
        self.of, self.known, self.number = of, frequencies or {}, number
        self.catalogue = self.vectors = self.vectorizer = self.passages = self.words = self
        self.embedded: list[str] = []

    def documents(self, texts: Any) -> np.ndarray:
        self.embedded += texts
        return np.array([self.of[text.split()[0]] for text in texts]).reshape(len(texts), 2)

    def embed_query(self, text: str) -> np.ndarray:
        return np.array(self.of["?"])

    def frequencies(self, stems: Any) -> dict[str, int]:
        return {stem: self.known[stem] for stem in stems if stem in self.known}

    def counts(self) -> dict[str, int]:
        return {"passages": self.number}

    def page(self, limit: int) -> list[Any]:
        return [SimpleNamespace(id=n) for n in range(min(limit, 3))]


@pytest.fixture
def collection(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Nothing differs, and unrelated texts have a cosine of 0.2."""
    monkeypatch.setattr(citation_check, "_floor", lambda collection: 0.2)
    monkeypatch.setattr(citation_check, "differences", lambda sentence, lines, about: ())

    def made(**of: list[float]) -> Any:
        return Vectors(of)

    return made


def test_rare_words_weigh_more() -> None:
    found = word_weights(Vectors({}, {"gravel": 10, "kiln": 50}), "gravel in the kiln, meringue")  # type: ignore[arg-type]
    assert found == {"gravel": log(11), "kiln": log(3), "meringu": log(101)}
    assert word_weights(Vectors({}, {}, 1), "kiln") == {"kiln": log(3)}  # type: ignore[arg-type]


def test_unrelated_passages_set_the_floor() -> None:
    stored = {0: np.array([1.0, 0.0]), 1: np.array([0.6, 0.8]), 2: np.array([0.8, 0.6])}
    found: Any = Vectors({})
    found.vectors = lambda ids: {i: stored[i] for i in ids}
    assert _floor(found) == pytest.approx(0.8)  # the median of 0.6, 0.8 and 0.96
    stored.clear()
    found.page = lambda limit: []
    assert _floor(found) == 0.0


def test_support_is_of_words_and_of_meaning_above_the_floor(collection: Any) -> None:
    """Half of the words are in the source, one of them in its file's name; its second line has a cosine of 0.6."""
    of = {"Gravel": [1.0, 0.0], "Basalt": [0.0, 1.0], "Sand": [0.6, 0.8]}
    checker = Checker(collection(**of), [source(1, "Basalt is hard. Sand is gravel.", path="kiln.md")])
    found = checker.best("Gravel kiln meringue quarry", 1)
    assert found.score == pytest.approx((1 - MEANING) * 0.5 + MEANING * 0.5)
    assert found.line == "Sand is gravel." and found.source.number == 1 and not found.enough
    assert checker.best("Gravel kiln meringue quarry", 1).score == found.score
    texts = checker._collection.embedded
    assert len(texts) == len(set(texts))  # nothing is embedded twice


@pytest.mark.parametrize(("other", "cited"), [(0.7, 1), (0.9, 2)])
def test_another_source_is_cited_where_it_is_clearer(collection: Any, other: float, cited: int) -> None:
    of = {"Gravel": [1.0, 0.0], "First": [0.6, 0.8], "Second": [other, (1 - other**2) ** 0.5]}
    checker = Checker(collection(**of), [source(1, "First gravel."), source(2, "Second gravel.")])
    found = checker.best("Gravel", 1)
    assert found.source.number == cited
    gap = MEANING * (other - 0.6) / 0.8
    assert (gap > CLEARER) == (cited == 2) and found.enough


def test_what_says_something_else_is_no_support(collection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(citation_check, "differences", lambda s, lines, about: ("not",) if lines[0][0] == "F" else ())
    of = {"Gravel": [1.0, 0.0], "First": [1.0, 0.0], "Second": [0.8, 0.6]}
    checker = Checker(collection(**of), [source(1, "First gravel."), source(2, "Second gravel.")])
    assert checker.best("Gravel", 1).source.number == 2  # though it scores less
    piece = source(1, "x").pieces[0]
    for score, differs, enough in ((SUPPORTED, (), True), (SUPPORTED - 0.01, (), False), (0.9, ("not",), False)):
        assert Support(score, differs, source(1, "x"), piece, "").enough == enough


def asked(of: dict[str, list[float]], *sources: Source, monkeypatch: pytest.MonkeyPatch) -> list[extractive.Quote]:
    weights = {"gravel": 3.0, "kiln": 1.0}
    monkeypatch.setattr(extractive, "word_weights", lambda collection, question: weights)
    return quotes(Vectors(of), "?", sources)  # type: ignore[arg-type]


def test_a_quote_fits_by_its_words_and_its_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    of = {"?": [1.0, 0.0], "Gravel": [0.8, 0.6], "Kilns": [0.0, 1.0], "Other": [-1.0, 0.0]}
    found = asked(
        of, source(1, "Gravel lies in a deep pit.\n\nOther words are not of any use."), monkeypatch=monkeypatch
    )
    assert [quote.score for quote in found] == [pytest.approx((0.75 + 0.8) / 2)]
    assert found[0].text.startswith("Gravel lies in a deep pit.")
    assert asked(of, monkeypatch=monkeypatch) == []


def test_a_heading_counts_in_part_and_later_sources_less(monkeypatch: pytest.MonkeyPatch) -> None:
    of = {"?": [1.0, 0.0], "Kiln": [0.5, 0.0], "Gravel": [0.5, 0.0]}
    first, second = source(1, "Gravel lies in this pit.", ("Kiln",)), source(2, "Gravel is in that pit.", ("Kiln",))
    found = asked(of, first, second, monkeypatch=monkeypatch)
    score = ((3.0 + HEADING) / 4 + 0.5) / 2
    assert [quote.score for quote in found] == [pytest.approx(score), pytest.approx(score - LATER)]
    turned = asked(of, second, first, monkeypatch=monkeypatch)
    assert [(q.source.number, q.score) for q in turned] == [
        (1, pytest.approx(score - LATER)), (2, pytest.approx(score)),
    ]  # fmt: skip


def test_only_what_comes_near_the_best_is_quoted_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for near, number in ((0.9, 2), (0.3, 1)):
        of = {"?": [1.0, 0.0], "Gravel": [1.0, 0.0], "Gravels": [near, 0.0]}
        found = asked(
            of, source(1, "Gravel lies here now."), source(2, "Gravels lie there too."), monkeypatch=monkeypatch
        )
        assert len(found) == number
        assert ((0.75 + near) / 2 - LATER >= NEAR * (0.75 + 1.0) / 2) == (number == 2)
    many = [source(n, f"Gravel lies in pit {n} now.") for n in range(1, 6)]
    of = {"?": [1.0, 0.0], "Gravel": [1.0, 0.0]}
    assert [quote.source.number for quote in asked(of, *many, monkeypatch=monkeypatch)] == [1, 2]


def test_a_sentence_that_belongs_to_a_quote_is_not_quoted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    of = {"?": [1.0, 0.0], "Gravel": [1.0, 0.0], "Kilns": [0.9, 0.0]}
    found = asked(of, source(1, "Gravel and kilns lie here. Kilns burn gravel all day long."), monkeypatch=monkeypatch)
    assert [quote.text for quote in found] == ["Gravel and kilns lie here. Kilns burn gravel all day long."]


def test_where_the_judge_has_read_the_answer_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extractive, "word_weights", lambda collection, question: {"gravel": 3.0})
    of = {"?": [1.0, 0.0], "Gravel": [0.8, 0.6], "Moved": [0.75, 0.66]}
    text = "Gravel lies in a deep pit of old.\n\nMoved gravel is put on the road."
    first, second = ({1: JudgeReading(1.0, text.index(word))} for word in ("lies", "road"))
    found = [quotes(Vectors(of), "?", [source(1, text)], readings) for readings in (first, second)]  # type: ignore[arg-type]
    assert max(found[0], key=lambda quote: quote.score).text.startswith("Gravel")
    best = max(found[1], key=lambda quote: quote.score)
    assert best.text.startswith("Moved") and best.score == pytest.approx((1 + 0.75) / 2 + READ)
