"""Which way is taken, by scores whose truth is known."""

import numpy as np

from settle.evaluate.compare.cases import asking
from settle.experiment.arm import Reply
from settle.experiment.race import ERROR_OF_WAYS, Race
from settle.jobs.choose.answerer import DOCUMENTS, PROMPT, TUNE, ZERO_SHOT, Built, Measured, Setup
from settle.jobs.choose.verdict import DIFFERING, ChoiceResult, decide, differing, page, rows


def measured(name, scores):
    replies = [Reply(f"{name} says {s:g}", read=10, written=2, seconds=1.0, joules=3.0) for s in scores]
    way = Built(name, None, Setup(), f"settle chat {name}", 1.0)
    return Measured(way, list(map(float, scores)), replies, 10**8)


def decided(*scores, margin=0.02):
    ways = [measured(name, s) for name, s in zip((ZERO_SHOT, PROMPT, DOCUMENTS, TUNE), scores, strict=False)]
    race = Race([way.name for way in ways], range(len(scores[0])), True, ERROR_OF_WAYS, 0, may_stop=False)
    asked = race.next_rows(len(scores[0]))
    race.record({k: [way.scores[row] for row in asked] for k, way in enumerate(ways)})
    outcome = race.outcome()
    return ways, outcome, decide(outcome, margin, True)


def test_the_cheapest_that_is_not_behind_is_taken():
    none, most, nearly = [0] * 40, [1] * 38 + [0] * 2, [1] * 37 + [0, 1, 0]
    _, _, verdict = decided(none, none, nearly, most)
    assert (verdict.chosen, verdict.is_shown) == (2, True), verdict.sentence
    assert "documents" in verdict.sentence and any("tune costs more" in note for note in verdict.notes)
    _, _, verdict = decided(most, most, most)
    assert (verdict.chosen, verdict.is_shown) == (0, True)


def test_it_says_when_it_cannot_tell_and_how_many_rows_would():
    _, _, verdict = decided([0] * 10 + [1] * 20, [1] * 4 + [0] * 6 + [1] * 20)
    assert not verdict.is_shown and verdict.more and "cannot tell" in verdict.sentence
    # two rows of thirty are as likely chance, and the cheaper way is taken
    _, outcome, verdict = decided([0] * 10 + [1] * 20, [1] * 2 + [0] * 8 + [1] * 20)
    assert (verdict.chosen, verdict.is_shown) == (0, True) and "may be ahead by" in verdict.notes[0]
    high = round(100 * outcome.pair(1, 0).difference.high)
    assert (
        f"nothing dearer is shown to be better, but prompt may be up to {high} points ahead, and " in verdict.sentence
    )
    assert verdict.sentence.endswith(" more test questions would show 5 points") and 15 <= high <= 25
    _, _, verdict = decided([0] * 30, [0] * 30)
    assert not verdict.is_shown and "no way got any" in verdict.sentence


def test_false_claims_are_rare():
    """Equal ways, 60 % right each: the dearer one is hardly ever called better."""
    random, false = np.random.default_rng(0), 0
    for _ in range(20):
        scores = (random.random((3, 40)) < 0.6).astype(float).tolist()
        _, outcome, _ = decided(*scores)
        false += any(pair.is_shown for pair in outcome.pairs)
    assert false <= 3


def test_the_page_shows_where_ways_differ_and_no_text_leaves_its_cell():
    ways, outcome, verdict = decided([0] * 30 + [1], [1] * 31)
    test = [asking(f"question {n} | a `b` <c>\x1b[31m", n) for n in range(31)]
    assert outcome.pair(1, 0).is_shown
    lines = differing(ways, test)
    assert sum(line.startswith("**question") for line in lines) == DIFFERING
    assert not any("\x1b" in line or "<c>" in line or " | a" in line for line in lines)
    table = rows(ways, verdict, range(31), True)
    assert [row[0] for row in table] == ["  zero-shot", "→ prompt"]
    made = ChoiceResult.model_construct(why=verdict.sentence, command=ways[1].way.command, audit={})
    text = page("a | b", made, table, verdict.notes, lines)
    assert "settle chat prompt" in text and "# Which way for a \\| b" in text


def test_ways_that_are_as_good_differ_nowhere():
    ways, _, verdict = decided([1] * 30, [1] * 30)
    assert differing(ways, [asking("q", n) for n in range(30)]) == [
        "Nowhere: each question was answered as well by every way."
    ]
    assert not any("-0 points" in note for note in verdict.notes) and "(0 points measured)" in verdict.notes[0]


def test_it_says_that_no_way_is_good():
    poor, fair = [1] * 3 + [0] * 27, [1] * 20 + [0] * 10
    assert any("no way is good: the best scores 10 %" in note for note in decided(poor, poor)[2].notes)
    assert not any("no way is good" in note for note in decided(poor, fair)[2].notes)
