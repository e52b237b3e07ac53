"""What is found is weighed, and what is not there is refused."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from settle.base.event_log import Events
from settle.retrieve.answer import evidence
from settle.retrieve.answer.answer_judge import JudgeReading
from settle.retrieve.answer.evidence import (
    COVERED,
    FEATURES,
    SHIPPED,
    SHIPPED_UNREAD,
    SURE,
    UNLIKELY,
    features_of,
    judge,
    weights_for,
)
from settle.retrieve.check.calibration import FALSE_REFUSALS, LEAST, RefusalTrial, calibrate, run_trials, threshold
from settle.retrieve.check.questions import CheckQuestion, make
from settle.retrieve.index.collection import Collection
from settle.retrieve.search import search
from tests.records import into
from tests.retrieve.asked import index
from tests.retrieve.checking import documents, indexed

ASKED = CheckQuestion("?", "heading", 1, "a.md", 1, frozenset(), frozenset(), frozenset())


@pytest.fixture
def collection(home, folder):
    indexed("docs", folder, 24)
    with Collection("docs") as opened:
        yield opened


def _calibrate(collection, events, questions):
    weights = calibrate(run_trials(collection, make(collection, questions), events)).weights
    return evidence.store(collection.catalogue, weights) if weights.questions else None


def _judged(collection, question):
    return judge(collection, question, search(collection, question))


def test_there_is_more_evidence_for_what_is_there(collection):
    there = _judged(collection, "what is a heron machine?")
    gone = _judged(collection, "what is a typewriter ribbon?")
    assert there.score > gone.score
    assert there.covered > gone.covered
    assert {"typewriter", "ribbon"} <= set(gone.missing)
    assert not there.missing


def test_nothing_found_is_no_evidence(collection):
    found = judge(collection, "what is a heron machine?", [])
    assert found.score < SHIPPED.threshold
    assert not found.enough
    judge(collection, "", [])


def test_features_are_finite_and_of_like_size_for_any_question(collection):
    for question in ("", "?", "the of and", "heron " * 200, "日本語の質問", "heron"):
        features = features_of(collection, question, search(collection, question))
        assert features.shape == (len(FEATURES),)
        assert np.isfinite(features).all()
        assert np.abs(features).max() < 20


LOGITS = (-4.0, -1.5, -0.2, 0.7, 3.0)


def _scored(collection, similarities, logits, found=None):
    found = found or search(collection, "heron machine")
    hits = [replace(hit, similarity=s) for hit, s in zip(found, similarities, strict=False)]
    readings = {hit.passage.id: JudgeReading(logit, 0) for hit, logit in zip(hits, logits, strict=False)}
    return judge(collection, "heron machine", hits, readings).score


def test_more_of_anything_is_never_less_evidence(collection):
    """A product of the judge's logit and the cosine was greater, the farther an unlikely passage was."""
    rng, found = np.random.default_rng(0), search(collection, "heron machine")
    for _ in range(60):
        similarities, logits = rng.uniform(-0.1, 0.9, 3), rng.choice(LOGITS, 3)
        before = _scored(collection, similarities, logits, found)
        for place in range(3):
            for nearer, likelier in ((0.2, 0.0), (0.0, 0.8)):
                more_similar, more_likely = similarities.copy(), logits.copy()
                more_similar[place] += nearer
                more_likely[place] += likelier
                assert _scored(collection, more_similar, more_likely, found) >= before
    for weights in (SHIPPED, SHIPPED_UNREAD):
        assert min(weights.weights) >= 0 and min(weights.scales) > 0


def test_what_is_far_from_every_passage_is_refused_whatever_the_judge_says(collection):
    assert _scored(collection, [0.08, 0.05, 0.02], [0.0, -0.5, -0.3]) < UNLIKELY  # "my back hurts after running"
    for limit, score in ((SHIPPED.floor, UNLIKELY), (SHIPPED.near, SURE)):
        below, above = (_scored(collection, [limit + step], [9.0]) for step in (-0.01, 0.01))
        assert below < score < above


def test_four_passages_that_are_unlikely_are_no_answer_together(collection):
    unlikely = float(np.log(0.2 / 0.8))
    one = _scored(collection, [0.3, 0.3, 0.3, 0.3], [unlikely])
    assert _scored(collection, [0.3, 0.3, 0.3, 0.3], [unlikely] * 4) == one < SURE


def test_a_line_that_is_alike_does_not_answer_against_the_judge(home, folder):
    """As the heading "Zoom" did for "zoom by pinching with two fingers"."""
    index("docs", folder, {"zoom.md": "# Zoom\n\nThe view menu has entries for a smaller and a larger view.\n"})
    with Collection("docs") as collection:
        (hit,) = search(collection, "zoom")
        found = judge(collection, "zoom", [hit], {hit.passage.id: JudgeReading(-3.5, 0)})
        assert found.covered == 1.0 and not found.is_sure


def test_words_of_what_is_left_out_tell_as_if_they_stood_nowhere(collection):
    hits = search(collection, "machine")
    heron = [p for p in collection.catalogue.passages.page() if "heron" in p.embedded.lower()]
    without_heron = [hit for hit in hits if hit.passage not in heron]
    less = features_of(collection, "heron machine", without_heron, heron)[COVERED]
    assert 0 < less < features_of(collection, "heron machine", without_heron)[COVERED] < 1


def test_calibrated_on_its_own_documents(collection):
    told = []
    events = Events(listeners=[into(told)])
    weights = _calibrate(collection, events, 60)
    assert weights.questions == 60
    assert weights_for(collection.catalogue) == weights
    assert (told[-1]["kind"], told[-1]["done"], told[-1]["total"]) == ("progress", 60, 60)
    assert _judged(collection, "what is a heron machine?").enough
    assert not _judged(collection, "why do penguins waddle?").enough


def test_too_few_documents_are_not_calibrated_on(home, folder):
    index("few", folder, dict(list(documents(2).items())))
    with Collection("few") as collection:
        assert _calibrate(collection, Events(), LEAST - 20) is None
        assert weights_for(collection.catalogue) == SHIPPED


def test_a_calibration_ends_when_the_documents_are_mostly_others(home, folder):
    indexed("docs", folder, 12)
    with Collection("docs") as collection:
        weights = evidence.store(collection.catalogue, SHIPPED)
        assert weights.passages == collection.catalogue.counts()["passages"]
        assert weights_for(collection.catalogue) == weights
    indexed("docs", folder, 16)
    with Collection("docs") as collection:
        assert weights_for(collection.catalogue) == weights
    indexed("docs", folder, 24)
    with Collection("docs") as collection:
        assert weights_for(collection.catalogue) == SHIPPED


def test_a_calibration_of_other_features_is_not_used(collection):
    weights = evidence.store(collection.catalogue, SHIPPED)
    kept = json.loads(json.dumps({**weights.__dict__, "version": weights.version + 1}))
    collection.catalogue.settings.set("evidence", kept)
    assert weights_for(collection.catalogue) == SHIPPED


def _trials(number, separation, seed=0):
    """Questions of another embedder, whose cosines are large, with an even share of their words in the passages."""
    rng = np.random.default_rng(seed)
    there, gone = (rng.normal(mean, 1, (number, len(FEATURES))) for mean in (separation + 10, 10))
    there[:, COVERED] = gone[:, COVERED] = SHIPPED_UNREAD.means[COVERED]
    return [RefusalTrial(ASKED, (), 0, a, b) for a, b in zip(there, gone, strict=True)]


def test_the_threshold_holds_on_questions_that_were_not_fitted_on():
    """Where a fifth of the answers cannot be told from none, fewer are refused all the same."""

    def trials(number, seed):
        made = _trials(number, 2.0, seed)
        return [replace(t, there=_trials(1, 0.0, i)[0].there) if i % 5 == 0 else t for i, t in enumerate(made)]

    weights = calibrate(trials(1000, 0)).weights
    fresh = [weights.score(trial.there) for trial in trials(4000, 1)]
    assert weights.threshold <= UNLIKELY
    assert np.mean(np.array(fresh) < weights.threshold) < FALSE_REFUSALS + 0.02
    drawn = np.random.default_rng(0).permutation(1000) / 1000
    assert threshold(drawn) == pytest.approx(FALSE_REFUSALS, abs=0.002)


def test_where_they_are_told_apart_the_unlikely_is_refused():
    weights = calibrate(_trials(3000, 3.0)).weights
    assert weights.threshold == UNLIKELY
    fresh = _trials(4000, 3.0, seed=1)
    gone, there = ([weights.score(row) for row in rows] for rows in ([t.gone for t in fresh], [t.there for t in fresh]))
    assert np.mean(np.array(there) < UNLIKELY) < 0.06 and np.mean(np.array(there) > 0.5) > 0.9
    assert np.mean(np.array(gone) < UNLIKELY) > 10 * np.mean(np.array(there) < UNLIKELY)
    assert np.mean(np.array(gone) < 0.5) > 0.9


def test_with_the_judge_generated_questions_move_the_threshold_alone():
    """They repeat the documents' words, and people's do not: weights that are fitted to them do not suit people's."""
    rng = np.random.default_rng(0)
    means, scales = np.array(SHIPPED.means), np.array(SHIPPED.scales)
    is_used = np.array(SHIPPED.weights) > 0

    def trials(shift):
        rows = [means + scales * rng.normal(z * is_used, 1) for z in [shift, -1.5] * 300]
        return [RefusalTrial(ASKED, (), 0, a, b, is_judged=True) for a, b in zip(rows[::2], rows[1::2], strict=True)]

    easy, hard = (calibrate(trials(shift)).weights for shift in (2.0, -1.5))
    for weights in (easy, hard):
        assert replace(weights, threshold=UNLIKELY, questions=0) == SHIPPED and weights.questions == 300
    assert easy.threshold == UNLIKELY > hard.threshold
    left = [SHIPPED.score(trial.there) for trial in trials(-1.5)]
    assert np.mean(np.array(left) < hard.threshold) < FALSE_REFUSALS + 0.04


def test_what_something_else_speaks_of_counts_for_nothing():
    trials = _trials(100, 1.2)
    spoken_of = [replace(trial, gone=trial.gone + 100, is_gone=False) for trial in _trials(100, 1.2, seed=1)]
    found = calibrate([*trials, *spoken_of])
    assert np.isnan(found.gone).tolist() == [False] * 100 + [True] * 100
    assert np.isfinite(found.there).all()
    assert np.mean(found.gone[:100]) < np.mean(found.there[:100]) - 0.1
    few = calibrate([*trials[:10], *spoken_of])  # too few are gone
    assert few.weights == SHIPPED_UNREAD
    assert np.isnan(few.gone).sum() == 100


def test_questions_that_tell_nothing_give_a_threshold_all_the_same():
    found = calibrate(_trials(100, 0.0))
    assert 0 <= found.weights.threshold <= 1
    assert np.isfinite(found.there).all()
    same = [RefusalTrial(ASKED, (), 0, np.zeros(len(FEATURES)), np.zeros(len(FEATURES)))] * 100
    assert np.isfinite(calibrate(same).there).all()


def test_judging_takes_milliseconds(collection):
    question = "what is a heron machine?"
    hits = search(collection, question)
    judge(collection, question, hits)
    began = time.perf_counter()
    for _ in range(20):
        judge(collection, question, hits)
    assert (time.perf_counter() - began) / 20 < 0.05  # of a machine that does other things as well
