"""How hits are scored, told apart and counted, over a catalogue whose figures the test makes up."""

import contextlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from settle.base.event_log import Events
from settle.base.statistics import Interval
from settle.documents.blocks import Place
from settle.retrieve.answer.evidence import FEATURES, SIMILARITY, UNLIKELY, shipped
from settle.retrieve.check import calibration
from settle.retrieve.check.calibration import LEAST, RefusalTrial, calibrate, families_of, run_trials, threshold
from settle.retrieve.check.check import MOST, CheckResult, Worst, _by_kind, _is_found, worst
from settle.retrieve.check.check_report import EASIER, emit_tables, figures, page
from settle.retrieve.index.catalogue import DocumentRecord, Occurrence, Passage
from settle.retrieve.search import (
    TITLE_WEIGHT,
    WORDS_WEIGHT,
    Hit,
    SearchTerms,
    _distinct,
    _runs,
    query,
    search,
    terms,
)
from tests.records import into


def passage(id: int, text: str = "", tokens: int = 5) -> Passage:
    return Passage(id, text or f"passage number {id}", (), tokens)


def hit(id: int, text: str = "", score: float = 0.0, similarity: float = 0.0) -> Hit:
    return Hit(passage(id, text), (Occurrence(id, f"{id}.md", 0, Place(line=3)),), score, similarity, 0.0)


class Catalogue:
    """Passage n is in document n; documents 1 to `number`. By meaning 1 is best, by words 2, by its title 3."""

    def __init__(self, number: int = 8) -> None:
        self.number = number
        self.passages = self.words = self
        self.vector = np.array([1.0, 0.0], np.float32)
        self.asked: list[int] = []

    def snapshot(self) -> Any:
        return contextlib.nullcontext()

    def nearest(self, vector: np.ndarray, number: int) -> Any:
        self.asked.append(number)
        return lambda: {n: 1.0 - 0.1 * (n - 1) for n in range(1, self.number + 1) if n <= number and n <= 4}

    def search(self, stems: Any, number: int) -> list[tuple[int, float]]:
        return [(2, 4.0), (5, 2.0)]

    def search_titles(self, stems: Any, number: int) -> list[tuple[int, float]]:
        return [(3, 4.0), (6, 1.0)]

    def first_of(self, documents: list[int], number: int) -> list[int]:
        assert number == 3
        return [d for d in documents if d <= self.number]

    def occurrences(self, ids: list[int]) -> dict[int, list[Occurrence]]:
        return {i: [Occurrence(i, f"{i}.md", 0, Place(line=3))] for i in ids}

    def get(self, ids: list[int]) -> dict[int, Passage]:
        return {i: passage(i, " ".join(f"w{i}x{n}" for n in range(9))) for i in ids}

    def vectors(self, ids: list[int]) -> dict[int, np.ndarray]:
        return {i: np.array([0.5, 9.0], np.float32) for i in ids}

    def embed_query(self, text: str) -> np.ndarray:
        return self.vector


@pytest.fixture
def catalogue(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("settle.retrieve.search.terms", lambda catalogue, question: SearchTerms(("a",), 4.0))
    found = Catalogue()
    return SimpleNamespace(catalogue=found, vectors=found, asked=found.asked)


def test_a_score_is_the_sum_of_meaning_words_and_title(catalogue: Any) -> None:
    found = {hit.passage.id: hit for hit in search(catalogue, "?", 10)}
    assert set(found) == {1, 2, 3, 4, 5, 6}
    assert found[1].score == 1.0 and found[2].score == pytest.approx(0.9 + WORDS_WEIGHT)
    assert found[3].score == pytest.approx(0.8 + TITLE_WEIGHT)
    assert found[5].score == pytest.approx(0.5 + WORDS_WEIGHT / 2)
    assert found[6].score == pytest.approx(0.5 + TITLE_WEIGHT / 4) and found[2].bm25 == 4.0 and found[6].bm25 == 0.0
    assert [h.passage.id for h in search(catalogue, "?", 3)] == [2, 3, 1] and found[2].citation == "2.md:3"
    assert catalogue.asked[0] == 50  # more are candidates than are wanted


def test_documents_can_be_searched_as_if_they_were_not_there(catalogue: Any) -> None:
    assert {h.passage.id for h in search(catalogue, "?", 10, frozenset({2, 3}))} == {1, 4, 5, 6}
    catalogue.asked.clear()
    catalogue.vectors.nearest = lambda vector, number: (
        catalogue.asked.append(number), lambda: dict.fromkeys(range(1, number + 1), 0.5))[1]  # fmt: skip
    assert len(search(catalogue, "?", 60, frozenset(range(1, 40)))) == 60
    assert catalogue.asked == [60, 240]  # those that are left out make room for more


def test_of_near_duplicates_the_best_stays() -> None:
    text = " ".join(f"word{n}" for n in range(40))
    other = text.replace("word0 ", "")
    far = " ".join(f"other{n}" for n in range(40))
    hits = [hit(1, text), hit(2, other, similarity=0.015), hit(3, far), hit(4, text, similarity=0.03)]
    assert [h.passage.id for h in _distinct(hits, 9)] == [1, 3, 4]  # their cosines are too far apart to be the same
    assert [h.passage.id for h in _distinct(hits, 2)] == [1, 3]
    some = " ".join(f"word{n}" for n in range(34))
    assert [h.passage.id for h in _distinct([hit(1, text), hit(5, some)], 9)] == [1, 5]
    assert _runs("one two four five six") == {("one", "two", "four", "five"), ("two", "four", "five", "six")}
    assert _runs("one two") == {("one", "two")}


class Words:
    """A catalogue of 1000 passages, or of so many; how many have each word."""

    def __init__(self, number: int = 1000, **frequencies: int) -> None:
        self.number = number
        self.known = frequencies
        self.words = self

    def counts(self) -> dict[str, int]:
        return {"passages": self.number}

    def frequencies(self, stems: Any) -> dict[str, int]:
        return {stem: self.known[stem] for stem in stems if stem in self.known}

    def starting_with(self, start: str) -> list[str]:
        return [word for word in self.known if word.startswith(start)]


def weight(frequency: int) -> float:
    return float(np.log((1000 - frequency + 0.5) / (max(frequency, 1) + 0.5)))


def found_terms(question: str, **frequencies: int) -> SearchTerms:
    return terms(Words(**frequencies), query(question))  # type: ignore[arg-type]


def test_the_rarest_word_comes_first() -> None:
    found = found_terms("gravel kiln gravel", gravel=100, kiln=7)
    assert found.stems == ("kiln", "gravel") and found.total == pytest.approx(weight(7) + weight(100))
    assert found_terms("zzz", gravel=1).stems == ("zzz",) and found_terms("zzz").total == pytest.approx(weight(0))
    assert found_terms("", gravel=1).total == 1.0 and found_terms("gravel", gravel=999).total == 1e-6


def test_the_commonest_words_are_left_out_where_there_are_many() -> None:
    found = found_terms("gravel kiln basalt", number=99_999, gravel=9000, kiln=2000, basalt=1001)
    assert found.stems == ("basalt", "kiln")
    assert found_terms("gravel kiln", number=99_999, gravel=9000, kiln=3000).stems == ("kiln", "gravel")
    assert found_terms("gravel", number=99_999, gravel=90_000).stems == ("gravel",)  # one is looked for in any case


def test_a_word_of_no_passage_may_be_misspelled_or_cut_short() -> None:
    known = {"gravel": 5, "gravels": 9, "gravell": 2, "gravid": 50, "grave": 8, "kiln": 3}
    assert found_terms("gravl", **known).stems == ("grave", "gravel")  # one letter is wrong
    assert found_terms("gra", **known).stems == ("gra",)  # too short to be the beginning of another
    assert found_terms("grav", **known).stems == ("gravid", "gravels", "grave")  # the most frequent that begin so
    assert found_terms("brakel", brakes=4, kiln=3).stems == ("brakes",)
    assert found_terms("klin", kiln=3).stems == ("klin",)
    assert found_terms("basaltine", basaltic=4).stems == ("basaltic",)  # of a long one two letters may be wrong
    assert found_terms("ab2b2b", ab2b2c=4).stems[0] == "ab2b2b"  # a name is spelled as it is


def question(
    path: str = "a.md", document: int = 1, passage: int = 1, text: str = "gravel?", kind: str = "title"
) -> Any:
    return SimpleNamespace(
        path=path, document=document, passage=passage, text=text, kind=kind, answers={passage}, topic={passage},
        without=set(),
    )  # fmt: skip


def trial(rank: int | None = 0, hits: tuple[Hit, ...] = (), score: float = 0.0, **asked: Any) -> RefusalTrial:
    features = np.full(len(FEATURES), score)
    return RefusalTrial(question(**asked), hits, rank, features, -features)


def test_questions_of_one_document_are_a_family() -> None:
    documents = [trial(document=n // 2, passage=n) for n in range(12)]
    assert families_of(documents) == [n // 2 for n in range(12)]
    passages = [trial(document=0, passage=n // 2) for n in range(12)]
    assert families_of(passages) == [n // 2 for n in range(12)]
    assert families_of([trial(document=0, passage=0)] * 4) == [0, 1, 2, 3]


def test_a_threshold_refuses_no_more_than_it_may() -> None:
    scores = np.arange(100.0)[::-1]
    assert threshold(scores) == 4.0 and threshold(np.arange(19.0)) == 0.0 and threshold(np.arange(39.0), 0.1) == 3.0


def test_too_few_questions_are_judged_by_the_shipped_weights() -> None:
    trials = [trial(score=1.0)] * (LEAST - 1)
    trials[3] = replace(trials[3], is_gone=False)
    found = calibrate(trials)
    usual = shipped(False)
    assert found.weights == usual and found.there.tolist() == [usual.score(trials[0].there)] * (LEAST - 1)
    assert np.isnan(found.gone[3]) and np.isnan(found.gone).sum() == 1
    assert found.thresholds.tolist() == [usual.threshold] * (LEAST - 1)


def random_trials(number: int, seed: int, **asked: Any) -> list[RefusalTrial]:
    random = np.random.default_rng(seed)
    there, gone = (random.normal(mean, 1.0, (number, len(FEATURES))) for mean in (11.0, 10.0))
    return [replace(trial(document=n // 10, passage=n), there=there[n], gone=gone[n]) for n in range(number)]


def test_another_embedders_cosines_are_standardized_each_kind_counting_the_same() -> None:
    trials = random_trials(50, 0)
    trials[7] = replace(trials[7], gone=trials[7].gone + 100, is_gone=False)
    found, usual = calibrate(trials), shipped(False)
    gone = [t.gone[SIMILARITY] for t in trials if t.is_gone]
    cosines = [np.array([t.there[SIMILARITY] for t in trials]), np.array(gone)]
    mean = (cosines[0].mean() + cosines[1].mean()) / 2
    scale = np.sqrt(np.mean([((kind - mean) ** 2).mean() for kind in cosines]))
    assert found.weights.means == pytest.approx((mean, *usual.means[1:]))
    assert found.weights.scales == pytest.approx((scale, *usual.scales[1:]), rel=1e-5)
    assert found.weights.weights == usual.weights and found.weights.bias == usual.bias
    assert found.weights.questions == 50 and found.weights.threshold <= UNLIKELY
    assert np.isnan(found.gone[7]) and np.isnan(found.gone).sum() == 1


def test_cosines_that_are_all_the_same_are_even_odds() -> None:
    same = [replace(trial(), there=np.full(len(FEATURES), 0.8), gone=np.full(len(FEATURES), 0.8))] * LEAST
    assert calibrate(same).there == pytest.approx(calibrate(same).gone) and np.isfinite(calibrate(same).there).all()


def test_a_threshold_is_judged_on_questions_of_other_documents() -> None:
    trials = random_trials(60, 1)
    found = calibrate(trials)
    fold = np.repeat(np.random.default_rng(0).permutation(6) % calibration.FOLDS, 10)
    for n in range(calibration.FOLDS):
        assert set(found.thresholds[fold == n]) == {min(UNLIKELY, threshold(found.there[fold != n]))}


def test_the_report_counts_each_question_as_often_as_it_was_scored() -> None:
    scores = calibration.EvidenceCalibration(
        shipped(False), np.array([0.9, 0.8, 0.4]), np.array([0.2, np.nan, 0.6]), np.ones(3)
    )
    report = calibration.report_of(scores, [1, 1, 2])
    assert report.rows == 5 and report.accuracy.value == pytest.approx(3 / 5)
    squares = [0.1, 0.2, 0.6, 0.2, 0.6]
    assert report.brier == pytest.approx(2 * sum(s * s for s in squares) / 5)
    shown = page(replace(RESULT, calibration=report))
    assert "right on 60.0% of 5 rows" in shown and "calibration error (ECE) of the evidence" in shown
    assert replace(RESULT, calibration=report).to_json()["calibration"] == report.to_json()


def test_each_question_is_asked_with_its_topic_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, frozenset[int]]] = []

    def fake_search(collection: Any, text: str, k: int, without: Any = frozenset()) -> list[Hit]:
        asked.append((k, frozenset(without)))
        return [hit(3), hit(1), hit(4)]

    seen: list[Any] = []

    def features(collection: Any, text: str, hits: Any, topic: Any = (), readings: Any = ()) -> np.ndarray:
        seen.append(([h.passage.id for h in hits], [p.id for p in topic]))
        return np.zeros(len(FEATURES))

    monkeypatch.setattr(calibration, "search", fake_search)
    monkeypatch.setattr(calibration, "features_of", features)
    monkeypatch.setattr(calibration, "_best_line", lambda *given: 0.849)
    monkeypatch.setattr(calibration, "read_best", lambda collection, text, hits: (hits, []))
    collection: Any = SimpleNamespace(catalogue=Catalogue())
    heard: list[Any] = []
    topic = question(passage=1)
    topic.answers, topic.topic, topic.without = {1}, {1, 4}, {9}
    other = question(passage=7)
    other.topic = {7, 8, 9}
    first, second = run_trials(collection, [topic, other], Events(listeners=[into(heard)]))
    assert first.rank == 1 and second.rank is None and first.is_gone
    depth = calibration.DEPTH
    assert asked == [(depth, frozenset()), (depth + 1, {9}), (depth, frozenset()), (depth + 3, frozenset())]
    assert seen[:2] == [([3], [1, 4]), ([3, 1, 4], [])] and [(e["done"], e["total"]) for e in heard] == [(1, 2), (2, 2)]
    monkeypatch.setattr(calibration, "LEFT", 0.849)
    assert not run_trials(collection, [topic], Events())[0].is_gone


def test_kinds_are_counted_the_most_frequent_first() -> None:
    trials = [trial(kind="title"), trial(rank=4), *(trial(rank=rank, kind="line") for rank in (5, None, 0))]
    found = _by_kind(trials)
    assert list(found) == ["line", "title"] and found["line"][0] == 3 and found["line"][1].value == pytest.approx(1 / 3)
    assert found["title"][1].value == 1 and _is_found(trials[1], 5) and not _is_found(trials[1], 4)


RESULT = CheckResult(
    "notes", 30, {k: Interval(k / 10, k / 20, 1.0) for k in range(1, 11)}, Interval(0.5, 0.4, 0.6),
    Interval(0.9, 0.8, 1.0), Interval(0.05, 0.0, 0.1), Interval(0.75, 0.5, 1.0),
    {"title": (20, Interval(0.8, 0.7, 0.9))},
    [Worst("a|b`.md", 7, 3, ("x", "y\nz"))], 0.4, ([], []), False, 1.5,
)  # fmt: skip


def test_every_line_of_the_report() -> None:
    assert page(RESULT) == (Path(__file__).parent / "check.txt").read_text(encoding="utf-8")
    bare = replace(RESULT, worst=[], is_calibrated=True, cited=None)
    assert "Worst" not in page(bare) and "too few" not in page(bare) and "citations" not in page(bare)
    assert [value.value for _, value in figures(bare)] == [0.1, 0.5, 1.0, 0.5, 0.9, 0.05]


def test_tables_say_the_same() -> None:
    heard: list[Any] = []
    emit_tables(RESULT, Events(listeners=[into(heard)]))
    assert heard[0]["rows"][0] == ["right passage first", "0.100", "0.050 – 1.000"] and len(heard[0]["rows"]) == 7
    assert heard[1]["rows"] == [["a|b`.md", "3 of 7", "x; y\nz"]] and heard[2]["text"] == EASIER
    assert heard[3]["text"].startswith("30 questions are too few")
    heard.clear()
    emit_tables(replace(RESULT, worst=[], is_calibrated=True), Events(listeners=[into(heard)]))
    assert len(heard) == 2 and heard[1]["text"] == EASIER


def test_json_holds_no_single_score() -> None:
    told = RESULT.to_json()
    assert "scores" not in told and told["recall"]["5"] == {"value": 0.5, "low": 0.25, "high": 1.0}  # type: ignore[index]
    assert told["kinds"] == {"title": {"questions": 20, "recall": {"value": 0.8, "low": 0.7, "high": 0.9}}}


def record(path: str, error: str = "", notes: tuple[str, ...] = ()) -> DocumentRecord:
    return DocumentRecord(path, 1, 1, b"", notes=notes, error=error)


DUG = "gravel, basalt, sand and clay are dug from deep pits beside the old road"


def worst_of(records: list[DocumentRecord], trials: list[RefusalTrial], **texts: Passage) -> list[Worst]:
    def get(ids: list[int]) -> dict[int, Passage]:
        return {i: texts.get(f"p{i}", passage(i, DUG)) for i in ids}

    catalogue = SimpleNamespace(documents=SimpleNamespace(all=lambda: records), passages=SimpleNamespace(get=get))
    vectors = SimpleNamespace(vectorizer=SimpleNamespace(most=100))
    collection: Any = SimpleNamespace(catalogue=catalogue, vectors=vectors)
    return worst(collection, trials)


def test_the_worst_documents_come_first() -> None:
    records = [record(f"{c}.md") for c in "abcdg"] + [record("e.md", "not text"), record("f.md", "", ("cut",))]
    trials = [trial(None, path="b.md")] * 2 + [trial(5, path="a.md"), trial(0, path="a.md"), trial(4, path="c.md")]
    trials += [trial(None, path="d.md")]
    found = worst_of(records, trials)
    assert [(one.path, one.asked, one.missed) for one in found] == [
        ("e.md", 0, 0), ("b.md", 2, 2), ("d.md", 1, 1), ("a.md", 2, 1), ("f.md", 0, 0),
    ]  # fmt: skip
    whys = [one.why for one in (found[0], found[3], found[-1])]
    assert whys == [("not text",), ("found, but only as number 6",), ("cut",)]
    assert len(worst_of([record(f"{n}.md", "x") for n in range(20)], [])) == MOST


@pytest.mark.parametrize(
    ("text", "asked", "first", "says"),
    [
        ("one two three four five six seven eight", "gravel", None, ["a passage of a few words says too little"]),
        ("gravel pit stone " * 20, "gravel", None, ["a passage says the same over and over"]),
        ("", "gravel", DUG, ["7.md:3 says nearly the same"]),
        ("", "meringue", "something else entirely", ["the question has none of its words"]),
        ("", "gravel", "something else entirely", ["7.md:3 is found in its place"]),
        ("", "gravel", None, []),
    ],
)
def test_why_a_document_is_found_badly(text: str, asked: str, first: str | None, says: list[str]) -> None:
    hits = (hit(7, first),) if first else ()
    texts = {"p1": passage(1, text)} if text else {}
    (found,) = worst_of([record("a.md")], [trial(None, hits, text=asked)], **texts)
    few = ["the question has none of its words"] if text.startswith("one two") else []
    assert list(found.why) == says + few
    long = {"p1": passage(1, "gravel, basalt, sand and clay are dug from deep pits beside the road", tokens=101)}
    (found,) = worst_of([record("a.md")], [trial(None)], **long)
    assert list(found.why) == ["a passage is longer than the embedder reads: its end is not found by meaning"]
