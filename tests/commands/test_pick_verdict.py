"""What `settle pick` says of given measurements."""

import pytest

from settle.base.statistics import Interval
from settle.evaluate.footprint import Measured as Figures
from settle.experiment.race import ComparedPair, Outcome
from settle.jobs.pick.candidates import Candidate, shortlist
from settle.jobs.pick.exam import Taken
from settle.jobs.pick.verdict import Measured, best_models, decide, rows


def model(name, gigabytes, speed, score=None):
    taken = Taken(Figures.of([0.5]), Figures.of([speed]), Figures.of([100.0]), int(gigabytes * 1e9), 4096, 32, 32)
    return Measured(Candidate(name, "in the store", int(gigabytes * 1e9)), taken, score, 40)


BIG, SMALL = model("big", 4.0, 5.0, 0.8), model("small", 1.0, 20.0, 0.78)


def outcome(means, pairs, left):
    return Outcome(["big", "small"], means, [40, 40], pairs, left, 40)


def pair(value, low, high, is_shown=False, more=None):
    return ComparedPair(0, 1, Interval(value, low, high), 40, 0.001 if is_shown else 0.5, is_shown, more=more)


def test_the_better_one_is_taken_though_it_is_larger():
    verdict = decide([BIG, SMALL], outcome([0.8, 0.4], [pair(0.4, 0.2, 0.6, True)], [0]), "exact match", True)
    assert verdict.chosen is BIG and verdict.is_better
    assert "better than all others" in verdict.sentence and "40 points (95 %: 20 to 60)" in verdict.sentence


def test_no_different_takes_the_smaller_and_says_what_would_decide():
    shown = outcome([0.8, 0.78], [pair(0.02, -0.1, 0.14, more=900)], [0, 1])
    verdict = decide([BIG, SMALL], shown, "exact match", True)
    assert verdict.chosen is SMALL and not verdict.is_better
    assert "the smallest of 2 that are not shown to differ" in verdict.sentence
    assert "; big may be up to 14 points ahead, and about 560 more prompts would show 5 points" in verdict.sentence
    assert (
        verdict.notes[0].startswith("big may be ahead by 14 points at most") and "900 more prompts" in verdict.notes[0]
    )


def test_a_clear_lead_that_is_not_decided_is_no_reason_for_the_smaller():
    shown = outcome([0.8, 0.6], [pair(0.2, -0.02, 0.4, more=25)], [0, 1])
    verdict = decide([BIG, SMALL], shown, "exact match", True)
    assert verdict.chosen is BIG and not verdict.is_better and "nothing is decided" in verdict.sentence
    assert "; small may be up to 2 points ahead, and about " in verdict.sentence
    assert "small is not shown to be worse" in verdict.notes[0] and "25 more prompts" in verdict.notes[0]


@pytest.mark.parametrize(
    ("measured", "known", "says"),
    [
        ([], None, "no model is left"),
        ([BIG, SMALL], None, "no model is recommended: no right answers were given"),
        ([BIG, SMALL], outcome([0.0, 0.0], [pair(0.0, -0.2, 0.2)], [0, 1]), "none of the 2 models"),
        ([BIG], Outcome(["big"], [0.8], [40], [], [0], 40), "the only one"),
    ],
)
def test_other_ends(measured, known, says):
    assert says in decide(measured, known, "exact match", True).sentence


def test_the_smallest_is_taken_though_another_is_faster():
    quick = model("quick", 2.0, 50.0, 0.79)
    known = Outcome(["quick", "small"], [0.79, 0.78], [40, 40], [pair(0.01, -0.1, 0.12)], [0, 1], 40)
    assert decide([quick, SMALL], known, "exact match", True).chosen is SMALL


def test_without_right_answers_no_model_has_the_arrow():
    verdict = decide([BIG, SMALL], None, "", True)
    assert verdict.chosen is None and "small is the fastest" in verdict.sentence
    assert [row[0] for row in rows([BIG, SMALL], verdict, True)] == ["  big", "  small"]


def test_the_table_begins_with_the_best_and_marks_the_one_to_take():
    verdict = decide([BIG, SMALL], outcome([0.8, 0.78], [pair(0.02, -0.1, 0.14)], [0, 1]), "exact match", True)
    table = rows([SMALL, BIG], verdict, True)
    assert [row[0] for row in table] == ["  big", "→ small"] and table[0][1] == "80.0 %"
    assert best_models([BIG, SMALL, model("poor", 1.0, 10.0, 0.3)]) == [BIG, SMALL]


def test_the_shortlist_prefers_what_is_here_and_keeps_the_smallest():
    here = [Candidate(f"m{size}", "in the store", size, ref=object()) for size in (5, 1, 3, 2, 4)]
    there = Candidate("far", "download", 9)
    chosen, left = shortlist([there, *here])
    assert [c.name for c in chosen] == ["m5", "m4", "m3", "m1"] and {e.name for e in left} == {"m2", "far"}
    chosen, left = shortlist([there, *here[:2]])
    assert [c.name for c in chosen] == ["m5", "m1", "far"] and not left
