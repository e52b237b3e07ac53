"""The figures of a choice by hand: the first look, what is left to win, what the page shows, how long it takes."""

import json

import pytest

from settle.base.errors import DataError, UsageError
from settle.base.event_log import Events
from settle.base.events import AnswerText
from settle.base.files import write_json
from settle.base.statistics import Interval
from settle.evaluate.compare.cases import Case, asking
from settle.evaluate.compare.race import Outcome, Pair
from settle.evaluate.tasks.exact import Exact
from settle.jobs.choose import choice_folder, ready, report
from settle.jobs.choose import choose as choose_module
from settle.jobs.choose import forecast as forecast_module
from settle.jobs.choose.documents import Found
from settle.jobs.choose.examples import ExampleSet
from settle.jobs.choose.settings import ChooseSettings
from settle.jobs.choose.setup import Setup, answers, with_passages
from settle.jobs.choose.triage import AS_IT_IS, CLOSED, EXAMPLES, GOLD, GOLD_EXAMPLES, only, predict, triage
from settle.jobs.choose.verdict import decide
from settle.jobs.choose.ways import (
    DECIDE,
    DOCUMENTS,
    PROMPT,
    TUNE,
    TUNE_DOCUMENTS,
    ZERO_SHOT,
    Built,
    Measured,
    possible_ways,
)
from settle.jobs.choose.ways.build import MOST_SHOTS, READING, Work, best_prompt, reading_prompt, tuning_recipe
from settle.jobs.trials.arm import Arm, Reply
from settle.library.reference import ModelRef
from settle.model.source import Source
from tests.jobs.choose.test_prompts import rows


def wanting(number, answer):
    case = asking(f"question {number}", number)
    return Case(number, answer, case.messages, prompt=case.prompt)


def tried_as(setup, passages, grammar):
    if grammar:
        return CLOSED
    if passages:
        return GOLD_EXAMPLES if setup.shots else GOLD
    return EXAMPLES if setup.shots else AS_IT_IS


def first_look(right, labels=(), gold=None):
    """The first look at ten rows, and what was asked. right: rows answered rightly, by what is tried; gold: rows whose
    answer a passage holds, None without documents."""
    train = [wanting(n, labels[n % len(labels)] if labels else f"answer {n}") for n in range(1, 19)]
    asked = []

    def ask(setup, passages, grammar, cases):
        asked.append((setup, passages, grammar, [case.number for case in cases]))
        number = right.get(tried_as(setup, passages, grammar), 0)
        return [Reply(case.reference if i < number else "?") for i, case in enumerate(cases)]

    found = {}
    if gold is not None:
        triage(train, labels, {}, Exact(), ask, 3)
        numbers = asked[0][3]
        found = {n: Found(("one", "two", "three"), "gold" if n in numbers[:gold] else "", 0.0) for n in range(1, 19)}
        asked.clear()
    return triage(train, labels, found, Exact(), ask, 3), asked


def test_the_first_look_asks_rows_that_are_no_examples():
    first, asked = first_look({AS_IT_IS: 2, EXAMPLES: 7})
    assert first.rows == 10 and first.scores == {AS_IT_IS: 0.2, EXAMPLES: 0.7} and first.in_documents == 0
    assert set(first.gains) == {EXAMPLES} and first.gains[EXAMPLES].value == pytest.approx(0.5)
    (plain, _, _, numbers), (shown, _, _, again) = asked
    assert not plain.shots and len(shown.shots) == 8 and numbers == again and len(set(numbers)) == 10
    assert not {question for question, _ in shown.shots} & {f"question {n}" for n in numbers}
    assert first.prediction == PROMPT and first.to_json()["gains"][EXAMPLES]["value"] == pytest.approx(0.5)


def test_the_right_passage_is_among_those_that_are_read():
    first, asked = first_look({GOLD: 6}, gold=4)
    assert first.in_documents == 0.4 and set(first.scores) == {AS_IT_IS, EXAMPLES, GOLD, GOLD_EXAMPLES}
    (passages,) = (p for setup, p, _, _ in asked if p and not setup.shots)
    assert sorted(passages.values()) == [("gold", "one", "two")] * 4 + [("one", "two", "three")] * 6
    assert first.prediction == DOCUMENTS and DOCUMENTS not in first.ruled_out
    # examples of other answers do not teach what only the documents hold
    assert set(first.ruled_out) == {TUNE}
    few, asked = first_look({}, gold=2)
    assert set(few.scores) == {AS_IT_IS, EXAMPLES} and "20%" in few.ruled_out[DOCUMENTS]
    assert set(few.ruled_out) == {DOCUMENTS, TUNE_DOCUMENTS}
    useless, _ = first_look({EXAMPLES: 5, GOLD: 5}, gold=3)
    assert "not even the right passage" in useless.ruled_out[TUNE_DOCUMENTS] and TUNE not in useless.ruled_out


def test_a_closed_set_is_tried_with_its_answers_alone():
    labels = ("ham", "spam")
    first, asked = first_look({AS_IT_IS: 5, CLOSED: 8}, labels)
    assert first.scores[CLOSED] == 0.8 and [grammar for *_, grammar, _ in asked][-1] == only(labels)
    assert first.prediction == DECIDE and not first.ruled_out
    solved, _ = first_look({CLOSED: 9}, labels)
    assert solved.prediction == PROMPT and set(solved.ruled_out) == {TUNE, TUNE_DOCUMENTS, DECIDE}
    assert "90%" in solved.ruled_out[TUNE]
    free, _ = first_look({EXAMPLES: 9})
    assert DECIDE not in free.ruled_out and TUNE in free.ruled_out


def test_what_is_just_enough_is_enough():
    assert predict({AS_IT_IS: 0.9, EXAMPLES: 0.0}, False)[0] == ZERO_SHOT
    assert predict({AS_IT_IS: 0.0, EXAMPLES: 0.0, GOLD: 0.1}, False)[0] == DOCUMENTS
    assert predict({AS_IT_IS: 0.0, EXAMPLES: 0.0, GOLD_EXAMPLES: 0.09}, False)[0] == TUNE
    assert predict({AS_IT_IS: 0.0, EXAMPLES: 0.1}, False)[0] == PROMPT
    assert predict({AS_IT_IS: 0.6, EXAMPLES: 0.9}, True)[0] == PROMPT
    assert predict({AS_IT_IS: 0.2, EXAMPLES: 0.2, GOLD: 0.5, GOLD_EXAMPLES: 0.4}, True)[0] == DOCUMENTS


def measured(name, scores, **way):
    replies = [
        Reply("x", ended=k > 0, asked=k > 1, read=10 + k, written=2, seconds=k, joules=2.0 * k)
        for k in range(len(scores))
    ]
    return Measured(Built(name, None, Setup(), name, **way), list(map(float, scores)), replies, 2 * 10**9)


def two(means, value, p_value=0.5, more=None):
    pair = Pair(0, 1, Interval(-value, -value - 0.1, -value + 0.1), 40, p_value, False, more=more)
    return Outcome([ZERO_SHOT, PROMPT], means, [40, 40], [pair], [0, 1], 40)


def test_a_dearer_way_must_be_ahead_by_more_than_the_margin():
    cheap, dear = measured(ZERO_SHOT, [1] * 30 + [0] * 10), measured(PROMPT, [1] * 35 + [0] * 5)
    known = two([0.75, 0.85], 0.1, more=50)
    verdict = decide([cheap, dear], known, range(40), 0.02, True)
    assert not verdict.is_shown and verdict.more == 50 and "10 points (95 %: 0 points to 20 points)" in verdict.sentence
    verdict = decide([cheap, dear], known, range(40), 0.15, True)
    assert (verdict.chosen, verdict.is_shown, verdict.more) == (0, True, None)
    assert "20 points at most (10 points measured); about 50 more" in verdict.notes[0]
    # the rows that differ are of one family: they show next to nothing
    assert decide([cheap, dear], known, [*range(30), *[30] * 5, *range(31, 36)], 0.02, True).is_shown
    # of a score without bounds the margin is a share of the best
    cheap, dear = measured(ZERO_SHOT, [100.0] * 40), measured(PROMPT, [103.0] * 39 + [102.0])
    assert not decide([cheap, dear], two([100.0, 103.0], 3.0), range(40), 0.02, False).is_shown
    assert decide([cheap, dear], two([100.0, 103.0], 3.0), range(40), 0.04, False).is_shown


def test_the_table_has_what_each_way_takes():
    one = measured(PROMPT, [1, 0, 1, 0], build_seconds=200.0, search_seconds=0.25, change_seconds=5.0)
    assert (one.score, one.seconds, one.tokens, one.joules) == (0.5, 1.75, 13.5, 3.0)
    assert (one.cut, one.unasked) == (1, 2)
    known = decide([one], Outcome([PROMPT], [0.5], [4], [], [0], 4), range(4), 0.02, True)
    (row,) = report.rows([one], known, range(4), True)
    assert row[0] == "→ prompt" and row[2:] == ["3 min", "1.8 s", "14", "2.00 GB", "3 J", "5.0 s"]
    assert row[1].startswith("50 % (")
    low, high = (float(end) for end in row[1][6:-1].split("–"))
    assert 0 <= low < 50 < high <= 100
    (other,) = report.rows([measured(PROMPT, [7, 8, 9, 8], change_note="never")], known, range(4), False)
    assert other[1].startswith("8.000 (") and other[2] == "–" and other[-1] == "never"
    assert [report.duration(s) for s in (9.9, 10, 89, 90, 600)] == ["9.9 s", "10 s", "89 s", "2 min", "10 min"]


def test_ways_that_there_are():
    assert possible_ways(False, False) == (ZERO_SHOT, PROMPT, TUNE)
    assert possible_ways(True, True) == (ZERO_SHOT, PROMPT, DOCUMENTS, DECIDE, TUNE, TUNE_DOCUMENTS)


class Told(Arm):
    """Answers as `say` does, given what is put before the question; counts what it is asked."""

    def __init__(self, say, path=None, key="told"):
        self.say, self.asked_for, self.closed, self.key, self.name = say, [], 0, key, "told"
        self.process_peak, self.max_tokens, self.limits = 10**8, 5, []
        self.ref = ModelRef("told", "model", Source(path, "gguf", "told")) if path else None

    def make(self, cases):
        self.asked_for += cases
        return [Reply(self.say(case), read=len(case.messages), seconds=1.0) for case in cases]

    def limited(self, max_tokens, grammar=""):
        self.limits.append((max_tokens, grammar))
        return self

    def close(self):
        self.closed += 1


def work_of(folder, model, number=30, labels=(), found=None, **settings):
    examples = ExampleSet(rows(number), [wanting(n, str(n)) for n in range(1, 13)], list(range(12)), {}, labels)
    asked = ChooseSettings.model_validate({"examples": folder / "rows.jsonl", "model": "told", **settings})
    return Work(asked, Events(), folder, model, examples, Exact(), None, found or {}, found or {})


def test_what_was_answered_is_not_asked_again(home):
    model, progress = Told(lambda case: case.question), []
    first = answers(model, [asking("a"), asking("b"), asking("a")], progress.append)
    assert [r.text for r in first] == ["a", "b", "a"] and progress == [1, 2, 3] and len(model.asked_for) == 2
    assert answers(model, [asking("b")])[0].text == "b" and len(model.asked_for) == 2
    assert answers(Told(lambda case: "c", key="another"), [asking("b")])[0].text == "c"


def test_the_best_prompt_is_kept_and_beside_passages_it_has_to_help(home, tmp_path):
    """The model answers rightly where examples are before a question, and with passages only without them."""

    def say(case):
        number = case.question.rsplit("q", 1)[-1]
        reads = "Passages:" in case.question
        return number if (len(case.messages) > 2) != reads else "?"

    found = {n: Found(("a passage",), "a passage", 0.5) for n in range(1, 31)}
    work = work_of(tmp_path, Told(say), found=found)
    assert work.search_seconds == pytest.approx(0.5)
    setup, seconds, about = best_prompt(work)
    assert len(setup.shots) == 4 and not setup.system and about.startswith("4 examples before every question")
    read, longer, beside = reading_prompt(work)
    assert read == Setup(system=READING) and beside == "passages before every question" and longer >= seconds
    number = len(work.model.asked_for)
    assert best_prompt(work) == (setup, seconds, about) and reading_prompt(work) == (read, longer, beside)
    assert len(work.model.asked_for) == number, "both are kept"
    (tmp_path / "other").mkdir()
    helped = work_of(tmp_path / "other", Told(lambda c: c.question.rsplit("q", 1)[-1] if len(c.messages) > 2 else ""))
    read, _, beside = reading_prompt(helped)
    assert len(read.shots) == MOST_SHOTS and read.system == READING and beside.startswith("passages, with 4 examples")


def test_the_pace_is_of_answers_after_the_first(home, tmp_path, monkeypatch):
    monkeypatch.setattr(forecast_module, "forecast_seconds", lambda recipe, events: (90.0, 60.0))
    found = {n: Found(("p",), "", 0.25) for n in range(1, 31)}
    times = iter([9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    model = Told(str)
    model.make = lambda cases: [Reply("x", read=40 if "Passages" in cases[0].question else 8, seconds=next(times))]
    pace = forecast_module.measure_pace(work := work_of(tmp_path, model, found=found))
    assert vars(pace) == {"plain": 2.0, "with_passages": 5.25, "tuning": 90.0, "steps": 60.0, "longer": 5.0}
    assert forecast_module.measure_pace(work) == pace, "it is measured once"


def test_how_a_way_is_tuned(home, tmp_path):
    found = {n: Found(("p", "o"), "p", 0.1) for n in range(1, 31)}
    asked = {"epochs": 6, "seed": 4, "threads": 1}
    work = work_of(tmp_path, Told(str), found=found, labels=("yes", "no"), **asked)
    plain, read, decides = (tuning_recipe(work, way) for way in (TUNE, TUNE_DOCUMENTS, DECIDE))
    assert (plain.epochs, read.epochs, decides.epochs) == (6, 3, 6)
    assert (plain.job, plain.decides, decides.job, decides.decides) == ("tune", False, "tune_decision", True)
    assert read.run.endswith("documents-tune") and plain.settings.rows.held_out == 0.1 and not plain.settings.compare
    assert plain.settings.seed == 4 and plain.settings.threads == 1 and plain.settings.model == "told"
    assert decides.command.endswith(f"--objective decision --epochs 6 --name {decides.run}")
    texts = [path.read_text().splitlines() for path in (plain.rows, read.rows, decides.rows)]
    assert [len(lines) for lines in texts] == [30] * 3
    assert "Passages" not in texts[0][0] and "Passages" in texts[1][0] and "targets" in json.loads(texts[2][0])
    plain.rows.write_text("kept")
    assert tuning_recipe(work, TUNE).rows.read_text() == "kept", "an earlier session's run was made of it"


def test_the_error_is_shared_by_all_pairs_and_too_few_rows_are_refused():
    examples = ExampleSet(rows(10), [wanting(n, "a") for n in range(12)], list(range(12)))
    choose_module.require_enough(examples, has_documents=False)
    with pytest.raises(DataError, match="9 examples are too few to build from"):
        choose_module.require_enough(ExampleSet(rows(9), examples.test, examples.families), False)
    with pytest.raises(DataError, match="6 independent test questions show no difference") as refused:
        choose_module.require_enough(ExampleSet(rows(10), examples.test, [n // 2 for n in range(12)]), True)
    # ten pairs of five ways with documents and a closed set: each has 0.05 / 10 = 2 · 2^-8.6, hence nine rows
    assert "enough for 9 test questions" in refused.value.fix


def test_a_choice_has_a_folder_of_its_own_and_continues_there(home, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"x")
    ref = Told(str, tmp_path / "m.gguf").ref

    def folder(rows=(1,), **asked):
        return choice_folder.folder_for(ChooseSettings.model_validate({"examples": "rows.jsonl", **asked}), ref, rows)

    first = folder()
    assert first.name == "rows" and folder() == first and folder(threads=3, dry=True) == first
    assert folder(rows=(2,)).name == "rows-2" and folder(seed=5) not in (first, folder(rows=(2,)))
    with pytest.raises(UsageError, match="rows is another choice"):
        folder(rows=(9,), name="rows")
    with pytest.raises(UsageError, match="not a usable name"):
        folder(rows=(9,), name="../x")
    named = folder(rows=(9,), name="mine")
    assert named.name == "mine" and folder(rows=(9,), name="mine") == named == folder(rows=(9,))
    choice_folder.note(first, a=1, b=2)
    choice_folder.note(first, b=3)
    assert choice_folder.noted(first) == {"a": 1, "b": 3}


def test_a_finished_choice_answers_as_it_was_measured(home, tmp_path, monkeypatch):
    folder = choice_folder.choices() / "mine"
    folder.mkdir(parents=True)
    (tmp_path / "m.gguf").write_bytes(b"x")
    setup = Setup("Be brief.", (("x", "y"),))
    model = Told(lambda case: "" if "nothing" in case.question else case.messages[0]["content"], tmp_path / "m.gguf")
    record = {**setup.to_json(), "collection": "", "max_tokens": 5, "labels": []}
    choice_folder.keep_way(folder, "documents + tune", model.ref, record)
    assert (folder / "way-documents-tune.json").is_file()
    assert Setup.from_json(choice_folder.kept_way(folder, "documents + tune")) == setup
    with pytest.raises(UsageError, match="there are: none yet"):
        ready.answer("mine", "q", None, Events())
    write_json(folder / choice_folder.RESULT, {"chosen": "documents + tune"})
    with pytest.raises(UsageError, match="no finished choice 'other'; there are: mine"):
        ready.answer("other", "q", None, Events())
    with pytest.raises(UsageError, match="nothing to answer"):
        ready.answer("mine", "  ", None, Events())
    seen = []
    monkeypatch.setattr(ready, "_model", lambda record, tokens, threads: model)
    assert ready.answer("mine", "q", None, Events(listeners=[seen.append])) == 0 and model.closed == 1
    assert [event.text for event in seen if isinstance(event, AnswerText)] == ["Be brief.\n"]
    assert ready.answer("mine", "nothing", None, Events()) == 3 and model.closed == 2
    monkeypatch.undo()
    (tmp_path / "m.gguf").unlink()
    monkeypatch.setenv("SETTLE_HOME", str(home))
    with pytest.raises(UsageError, match="is gone"):
        ready.answer("mine", "q", None, Events())
    write_json(folder / choice_folder.RESULT, {"chosen": "tune"})
    with pytest.raises(UsageError, match="no way 'tune' that is ready"):
        ready.answer("mine", "q", None, Events())


def test_passages_are_numbered_before_the_question():
    assert with_passages("q?", ()) == "q?"
    assert with_passages("q?", ("a", "b")) == "Passages:\n\n[1] a\n\n[2] b\n\nQuestion: q?"
