"""The figures of a choice by hand: the first look, what is left to win, what the page shows, how long it takes."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from settle.base.errors import DataError, EngineError, UsageError
from settle.base.event_log import Events
from settle.base.events import AnswerText, Say
from settle.base.files import write_json
from settle.base.statistics import Interval
from settle.base.stop_signals import Stopping
from settle.evaluate.compare.cases import Case, asking
from settle.evaluate.compare.sample_size import smallest_visible
from settle.evaluate.tasks.exact import Exact
from settle.experiment.arm import Arm, Reply
from settle.experiment.race import ComparedPair, Outcome
from settle.jobs.choose import choose as choose_module
from settle.jobs.choose import verdict as verdict_module
from settle.jobs.choose import ways
from settle.jobs.choose.answerer import (
    DECIDE,
    DOCUMENTS,
    PROMPT,
    TUNE,
    TUNE_DOCUMENTS,
    ZERO_SHOT,
    Built,
    Failed,
    Measured,
    Setup,
    answers,
    possible_ways,
    with_passages,
)
from settle.jobs.choose.context import ChoiceFolder, ChooseContext
from settle.jobs.choose.documents import Findings, Found
from settle.jobs.choose.examples import ExampleSet, only
from settle.jobs.choose.forecast import OTHER_SECONDS, Costs, forecast, forecast_triage
from settle.jobs.choose.triage import AS_IT_IS, EXAMPLES, FORM, GOLD, GOLD_EXAMPLES, Triage, predict, triage
from settle.jobs.choose.verdict import ChoiceResult, decide
from settle.jobs.choose.ways import MOST_SHOTS, READING, Tuned, best_prompt, reading_prompt, tuning_recipe
from settle.jobs.kept_work import PROGRESS, RESULT
from settle.jobs.settings import ChooseSettings
from settle.library.reference import ModelRef
from settle.model.source import Source
from tests.jobs.choose.test_prompts import rows


def wanting(number, answer):
    case = asking(f"question {number}", number)
    return Case(number, answer, case.messages, prompt=case.prompt)


def tried_as(setup, passages):
    if setup.grammar:
        return FORM
    if passages:
        return GOLD_EXAMPLES if setup.shots else GOLD
    return EXAMPLES if setup.shots else AS_IT_IS


def first_look(right, labels=(), gold=None):
    """The first look at ten rows, and what was asked. right: rows answered rightly, by what is tried; gold: rows whose
    answer a passage holds, None without documents."""
    train = rows(18, lambda n: labels[(n + 1) % len(labels)] if labels else f"answer {n + 1}")
    examples, asked = ExampleSet(train, [], [], {}, labels), []

    def ask(setup, passages, cases):
        asked.append((setup, passages, [case.number for case in cases]))
        number = right.get(tried_as(setup, passages), 0)
        return [Reply(case.reference if i < number else "?") for i, case in enumerate(cases)]

    found = {}
    if gold is not None:
        triage(examples, {}, Exact(), ask, 3)
        numbers = asked[0][2]
        found = {n: Found(("one", "two", "three"), "gold" if n in numbers[:gold] else "", 0.0) for n in range(1, 19)}
        asked.clear()
    return triage(examples, found, Exact(), ask, 3), asked


def test_the_first_look_asks_rows_that_are_no_examples():
    first, asked = first_look({AS_IT_IS: 2, EXAMPLES: 7})
    assert first.rows == 10 and first.scores == {AS_IT_IS: 0.2, EXAMPLES: 0.7} and first.in_documents == 0
    assert set(first.gains) == {EXAMPLES} and first.gains[EXAMPLES].value == pytest.approx(0.5)
    (plain, _, numbers), (shown, _, again) = asked
    assert not plain.shots and len(shown.shots) == 8 and numbers == again and len(set(numbers)) == 10
    assert not {question for question, _ in shown.shots} & {f"q{n - 1}" for n in numbers}
    assert first.prediction == PROMPT


def test_the_right_passage_is_among_those_that_are_read():
    first, asked = first_look({GOLD: 6}, gold=4)
    assert first.in_documents == 0.4 and set(first.scores) == {AS_IT_IS, EXAMPLES, GOLD, GOLD_EXAMPLES}
    (passages,) = (p for setup, p, _ in asked if p and not setup.shots)
    assert (
        sorted(found.passages for found in passages.values())
        == [("gold", "one", "two")] * 4 + [("one", "two", "three")] * 6
    )
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
    first, asked = first_look({AS_IT_IS: 5, FORM: 8}, labels)
    assert first.scores[FORM] == 0.8 and asked[-1][0].grammar == only(labels)
    assert first.prediction == DECIDE and not first.ruled_out
    solved, _ = first_look({FORM: 9}, labels)
    assert solved.prediction == PROMPT and set(solved.ruled_out) == {TUNE, TUNE_DOCUMENTS, DECIDE}
    assert "90%" in solved.ruled_out[TUNE]
    free, _ = first_look({EXAMPLES: 9})
    assert DECIDE not in free.ruled_out and TUNE in free.ruled_out


@pytest.mark.parametrize(
    ("scores", "is_closed", "way"),
    [
        ({AS_IT_IS: 0.9, EXAMPLES: 0.0}, False, ZERO_SHOT),
        ({AS_IT_IS: 0.0, EXAMPLES: 0.0, GOLD: 0.1}, False, DOCUMENTS),
        ({AS_IT_IS: 0.0, EXAMPLES: 0.0, GOLD_EXAMPLES: 0.09}, False, TUNE),
        ({AS_IT_IS: 0.0, EXAMPLES: 0.1}, False, PROMPT),
        ({AS_IT_IS: 0.6, EXAMPLES: 0.9}, True, PROMPT),
        ({AS_IT_IS: 0.2, EXAMPLES: 0.2, GOLD: 0.5, GOLD_EXAMPLES: 0.4}, True, DOCUMENTS),
        ({AS_IT_IS: 0.2, EXAMPLES: 0.3, FORM: 0.3}, True, DECIDE),
    ],
)
def test_what_is_just_enough_is_enough(scores, is_closed, way):
    assert predict(scores, is_closed)[0] == way


def measured(name, scores, **way):
    replies = [
        Reply("x", ended=k > 0, asked=k > 1, read=10 + k, written=2, seconds=k, joules=2.0 * k)
        for k in range(len(scores))
    ]
    return Measured(Built(name, None, Setup(), name, **way), list(map(float, scores)), replies, 2 * 10**9)


def two(means, value, more=None, p_alone=0.05):
    pair = ComparedPair(0, 1, Interval(-value, -value - 0.1, -value + 0.1), 40, 0.5, False, more=more, p_alone=p_alone)
    return Outcome([ZERO_SHOT, PROMPT], means, [40, 40], [pair], [0, 1], 40)


def test_a_dearer_way_must_be_ahead_by_more_than_the_margin():
    known = two([0.75, 0.85], 0.1, more=50)
    verdict = decide(known, 0.02, True)
    assert not verdict.is_shown and verdict.more == 50 and "10 points (95 %: 0 to 20)" in verdict.sentence
    verdict = decide(known, 0.15, True)
    assert (verdict.chosen, verdict.is_shown, verdict.more) == (0, True, None)
    assert "20 points at most (10 points measured); about 50 more" in verdict.notes[0]
    # a lead that is chance as likely as not is none
    assert decide(two([0.75, 0.85], 0.1, p_alone=0.101), 0.02, True).is_shown
    # of a score without bounds the margin is a share of the best
    assert not decide(two([100.0, 103.0], 3.0), 0.02, False).is_shown
    assert decide(two([100.0, 103.0], 3.0), 0.04, False).is_shown


def test_the_table_has_what_each_way_takes():
    one = measured(PROMPT, [1, 0, 1, 0], build_seconds=200.0, search_seconds=0.25, change_seconds=5.0)
    assert (one.score, one.seconds, one.tokens, one.joules) == (0.5, 1.75, 13.5, 3.0)
    assert (one.cut, one.unasked) == (1, 2)
    known = decide(Outcome([PROMPT], [0.5], [4], [], [0], 4), 0.02, True)
    (row,) = verdict_module.rows([one], known, range(4), True)
    assert row[0] == "→ prompt" and row[2:] == ["3 min 20 s", "1.8 s", "14", "2.00 GB", "3 J", "5.0 s"]
    assert row[1].startswith("50 % (")
    low, high = (float(end) for end in row[1][6:-1].split("–"))
    assert 0 <= low < 50 < high <= 100
    (other,) = verdict_module.rows([measured(PROMPT, [7, 8, 9, 8], change_note="never")], known, range(4), False)
    assert other[1].startswith("8.000 (") and other[2] == "–" and other[-1] == "never"


def test_ways_that_there_are():
    assert possible_ways(False, False) == (ZERO_SHOT, PROMPT, TUNE)
    assert possible_ways(True, True) == (ZERO_SHOT, PROMPT, DOCUMENTS, DECIDE, TUNE, TUNE_DOCUMENTS)


class Told(Arm[Case, Reply]):
    """Answers as `say` does, given what is put before the question; counts what it is asked."""

    def __init__(self, say, path=None, key="told"):
        self.say, self.asked_for, self.closed, self.key, self.name = say, [], 0, key, "told"
        self.process_peak, self.max_tokens, self.forms = 10**8, 5, []
        self.ref = ModelRef("told", "model", Source(path, "gguf", "told")) if path else None

    def measure(self, case):
        self.asked_for.append(case)
        return Reply(self.say(case), read=len(case.messages), seconds=1.0)

    def held_to(self, grammar):
        self.forms.append(grammar)
        return self

    def close(self):
        self.closed += 1


def findings(of):
    """What documents have for training questions 1 to 30 and test questions 1 to 12, already searched for."""
    cases = [wanting(n, str(n)) for n in of]
    made = Findings(cases, lambda case: of[case.number])
    made.complete(Events())
    return made


def context_of(folder, model, number=30, labels=(), found=None, **settings):
    examples = ExampleSet(rows(number), [wanting(n, str(n)) for n in range(1, 13)], list(range(12)), {}, labels)
    asked = ChooseSettings.model_validate({"examples": folder / "rows.jsonl", "model": "told", **settings})
    train, test = (findings({n: found[n] for n in range(1, end)}) if found else Findings() for end in (number + 1, 13))
    c = ChooseContext(
        *(ChoiceFolder(folder), asked, Events(), Stopping()),
        ref=model.ref,
        examples=examples,
        task=Exact(),
        found_train=train,
        found_test=test,
    )
    c.model = model
    return c


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
    c = context_of(tmp_path, Told(say), found=found)
    assert c.search_seconds == pytest.approx(0.5)
    best = best_prompt(c)
    assert len(best.shots) == 4 and not best.system and best.about.startswith("4 examples before every question")
    assert best.about.endswith("held to their form") and set(c.model.forms) == {best.grammar} != {""}
    read = reading_prompt(c)
    assert (read.system, read.shots, read.grammar) == (READING, (), best.grammar)
    assert read.about == "passages before every question" and read.seconds >= best.seconds
    number = len(c.model.asked_for)
    assert best_prompt(c) == best and reading_prompt(c) == read
    assert len(c.model.asked_for) == number, "both are kept"
    (tmp_path / "other").mkdir()
    helped = context_of(
        tmp_path / "other", Told(lambda q: q.question.rsplit("q", 1)[-1] if len(q.messages) > 2 else "")
    )
    read = reading_prompt(helped)
    assert len(read.shots) == MOST_SHOTS and read.system == READING
    assert read.about.startswith("passages, with 4 examples")


def test_questions_are_searched_for_once_and_when_they_are_wanted():
    asked, progress = [], []
    found = Findings([wanting(n, "a") for n in (1, 2, 3)], lambda case: asked.append(case.number) or Found(()))
    assert len(found) == 3 and 2 in found and 9 not in found and not asked
    assert found[2] is found[2] and list(found.known) == [2]
    found.complete(Events(listeners=[progress.append]))
    assert asked == [2, 1, 3] and [(e.done, e.total) for e in progress] == [(1, 2), (2, 2)]


PACE = Costs(
    plain=1.0, with_examples=2.0, with_passages=4.0, search=0.5, tuning=100.0, steps=60.0, deciding=150.0, longer=5.0
)
WAYS = {ZERO_SHOT: False, PROMPT: False, DOCUMENTS: True, TUNE: False, TUNE_DOCUMENTS: True, DECIDE: False}


def test_each_way_takes_its_building_and_its_answers():
    parts = forecast(PACE, 72, 48, WAYS)
    assert parts[ZERO_SHOT] == 48
    assert parts[PROMPT] == 60 * 1.6 + 48 * 2  # prompts with no, four and eight examples are tried
    assert parts[DOCUMENTS] == 48 * 0.5 + 8 * (4 + 5) + 48 * 4  # two prompts beside passages, one of them with examples
    assert parts[TUNE] == 100 + OTHER_SECONDS + 48 and parts[DECIDE] == 150 + OTHER_SECONDS + 48
    # half as many passes over rows five times as long; reading, proof and export take as long as without passages
    assert parts[TUNE_DOCUMENTS] == 72 * 0.5 + 40 + 60 * 2.5 + OTHER_SECONDS + 48 * 4
    assert "documents" not in forecast(PACE, 72, 48, {ZERO_SHOT: False})


def test_the_first_look_is_forecast_and_replaces_what_was_known_of_answers():
    # a search, the passages alone, and the passages behind examples
    assert forecast_triage(PACE, 72, reads=True, has_form=False) == 30 * (1 + 2 + 0.5 + 4 + (4 + 2 - 1))
    assert forecast_triage(PACE, 20, reads=False, has_form=False) == 20 * (1 + 2)
    assert forecast_triage(PACE, 20, reads=False, has_form=True) == 20 * (1 + 2 + 1)
    looked = {AS_IT_IS: 0.5, EXAMPLES: 1.0}
    seen = PACE.after(looked, 0.2)
    assert vars(seen) == vars(PACE) | {"plain": 0.5, "with_examples": 1.0, "search": 0.2}
    assert seen.after(looked | {GOLD: 3.0}, 0.2).with_passages == 3.0


def test_the_pace_is_of_answers_after_the_first(home, tmp_path, monkeypatch):
    monkeypatch.setattr(choose_module, "forecast_seconds", lambda recipe, events: (90.0, 60.0))
    found = {n: Found(("p",), "", 0.25) for n in range(1, 31)}
    times = iter([9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])
    model = Told(str)
    model.measure = lambda case: Reply("x", read=40 if "Passages" in case.question else 8, seconds=next(times))
    choose_module.pace(c := context_of(tmp_path, model, found=found))
    answers_take = {"plain": 2.0, "with_passages": 5.0, "with_examples": 8.0, "search": 0.25}
    assert vars(c.costs) == answers_take | {"tuning": 90.0, "steps": 60.0, "deciding": 0.0, "longer": 5.0}
    known = c.costs
    choose_module.pace(c)
    assert c.costs == known, "it is measured once"


def test_tuning_a_decision_is_timed_by_its_own_rows_where_it_can_be_tuned(home, tmp_path, monkeypatch):
    def seconds(recipe, events):
        if recipe.judged and recipe.threads == 3:
            raise DataError("the label 'A' is no single token", "another model")
        if recipe.judged:
            assert recipe.settings.rows.held_out_from == recipe.judged and recipe.job == "tune_decision"
            assert f"--rows.held-out-from {recipe.judged}" in recipe.command and recipe.judged.exists()
            return 150.0, 100.0
        return 90.0, 60.0

    monkeypatch.setattr(choose_module, "forecast_seconds", seconds)
    for threads, deciding in ((2, 150.0), (3, 90.0)):
        (folder := tmp_path / str(threads)).mkdir()
        choose_module.pace(c := context_of(folder, Told(str), labels=["1", "2"], threads=threads))
        assert (c.costs.tuning, c.costs.deciding) == (90.0, deciding)
    judged = [json.loads(line)["targets"] for line in (tmp_path / "2" / "decide-test.jsonl").read_text().splitlines()]
    assert judged == [{"answer": "1"}, {"answer": "2"}], "of the test questions those that want a label"


def test_every_way_answers_the_test_and_one_that_fails_is_named(home, tmp_path):
    found = {n: Found((f"says {n}",), "", 0.1) for n in range(1, 31)}
    c = context_of(tmp_path, Told(str), found=found)

    def read(case):
        return case.question.split("says ")[1].split("\n")[0] if "says " in case.question else "?"

    def fail(case):
        raise EngineError("it died\nlater", "try again")

    reading, broken = Told(read, key="reading"), Told(fail, key="broken")
    c.ways = [Built(ZERO_SHOT, reading, Setup(), "a"), Built(PROMPT, broken, Setup(), "b")]
    c.ways += [Built(DOCUMENTS, reading, Setup(), "c")]
    choose_module.ask(c)
    assert [(m.name, m.score) for m in c.measured] == [(ZERO_SHOT, 0.0), (DOCUMENTS, 1.0)]
    assert [(f.name, f.why) for f in c.failed] == [(PROMPT, "it died")] and c.measured[1].peak == 10**8
    assert c.outcome.pair(1, 0).is_shown and c.outcome.means[1] == 1.0 and not c.outcome.why
    assert c.verdict.chosen == 1 and c.verdict.is_shown
    reading.process_peak, every = 10**7, c.ways
    c.ways = every[::2]
    choose_module.ask(c)
    assert c.measured[0].peak == 10**8, "the most of all sessions"
    c.ways = every[1:2]
    with pytest.raises(DataError, match="no way could be measured"):
        choose_module.ask(c)


def test_a_way_that_cannot_be_built_is_left_out(home, tmp_path, monkeypatch):
    def built(name, c):
        if name == TUNE:
            raise EngineError("no memory\nat all", "stop other programs")
        return Built(name, None, Setup(), name)

    monkeypatch.setattr(choose_module, "built", built)
    c = context_of(tmp_path, Told(str))
    c.left = {ZERO_SHOT: 1.0, TUNE: 2.0}
    choose_module.build(c)
    assert [w.name for w in c.ways] == [ZERO_SHOT] and [(f.name, f.why) for f in c.failed] == [(TUNE, "no memory")]
    assert set(c.folder.spent()) == {ZERO_SHOT, TUNE}, "the time of a failure counts"
    c.measured = [measured(TUNE, [1, 0, 1])]
    c.folder.keep("spent", {TUNE: 7.0, DOCUMENTS: 2.0})
    assert c.actual_seconds() == {TUNE: 10.0, DOCUMENTS: 2.0}
    said = choose_module._forecast_and_actual({TUNE: 20.0, PROMPT: 9.0}, {TUNE: 10.0})
    assert said == "the ways took 10 s, forecast 20 s: tune 10 s (20 s)"


def test_what_can_be_seen_is_said_before_anything_runs():
    seen = []
    labels = [*"abcdefg"]
    rare = rows(30, lambda n: labels[n] if n < 6 else "g")
    examples = ExampleSet(rare, [wanting(n, "g") for n in range(40)], list(range(40)), {"are odd": 2}, labels)
    choose_module.say_what_can_be_seen(examples, Exact(), False, Events(listeners=[seen.append]))
    texts = [event.text for event in seen]
    assert texts[0] == "left out: 2 examples that are odd"
    assert texts[1].startswith("fewer than 3 examples want a, b, c, d, e and 1 more: nothing")
    assert texts[2].startswith("30 examples to build from, 40 locked away as a test, a closed set of 7 answers, scored")
    # four ways are six pairs
    visible = smallest_visible(40, 0.05 / 6)
    assert texts[3] == f"a difference of {100 * visible:.0f} points or more would be seen in four cases of five"


def test_the_page_and_the_exit_code(home, tmp_path):
    c, seen = context_of(tmp_path, Told(str)), []
    c.events = Events(listeners=[seen.append])
    c.measured = [measured(ZERO_SHOT, [1] * 12, about="as it is"), measured(PROMPT, [0] * 12)]
    c.outcome = Outcome([ZERO_SHOT, PROMPT], [1.0, 0.0], [12, 12], [], [0], 12)
    c.verdict = decide(c.outcome, 0.02, True)
    c.failed, c.expected, c.left = [Failed(TUNE, "it broke")], {ZERO_SHOT: 2.0}, {ZERO_SHOT: 1.0}
    c.first = Triage(12, {}, {}, {}, 0.0, ZERO_SHOT, "", {})
    choose_module.result(c)
    assert c.exit_code == 0
    page = (tmp_path / "page.md").read_text()
    assert "tune could not be measured: it broke" in page and "zero-shot: as it is" in page
    # one reply of twelve was cut, which is no tenth and is told; two were not asked
    assert page.count("2 test questions were too long for") == 2 and page.count("1 of 12 answers of") == 0
    made = json.loads((tmp_path / RESULT).read_text())
    assert list(made) == list(ChoiceResult.model_fields) and made["chosen"] == ZERO_SHOT and made["triage_agrees"]
    assert made["failed"] == [{"name": TUNE, "why": "it broke"}] and made["ways"][0]["memory"] == 2 * 10**9
    assert "nothing is known of tune, which could not be measured" in made["why"]
    texts = [event.text for event in seen if isinstance(event, Say)]
    assert texts[1] == made["why"] and texts[-2] == "to make it ready: zero-shot"
    c.verdict = replace(c.verdict, is_shown=False)
    choose_module.result(c)
    assert c.exit_code == 3


def test_how_a_way_is_tuned(home, tmp_path):
    found = {n: Found(("p", "o"), "p", 0.1) for n in range(1, 31)}
    asked = {"epochs": 6, "seed": 4, "threads": 1}
    c = context_of(tmp_path, Told(str), found=found, labels=[str(n) for n in range(31)], **asked)
    plain, read, decides = (tuning_recipe(c, way) for way in (TUNE, TUNE_DOCUMENTS, DECIDE))
    assert (plain.epochs, read.epochs, decides.epochs) == (6, 3, 6)
    assert (plain.job, plain.judged, decides.job, decides.judged) == (
        "tune",
        None,
        "tune_decision",
        tmp_path / "decide-test.jsonl",
    )
    assert read.run.endswith("documents-tune") and plain.settings.rows.held_out == 0.1 and not plain.settings.compare
    assert plain.settings.seed == 4 and plain.settings.threads == 1 and plain.settings.model == "told"
    assert decides.command.endswith(
        f"--objective decision --rows.held-out-from {decides.judged} --epochs 6 --name {decides.run}"
    )
    texts = [path.read_text().splitlines() for path in (plain.rows, read.rows, decides.rows)]
    assert [len(lines) for lines in texts] == [30] * 3
    assert "Passages" not in texts[0][0] and "Passages" in texts[1][0] and "targets" in json.loads(texts[2][0])
    plain.rows.write_text("kept")
    assert tuning_recipe(c, TUNE).rows.read_text() == "kept", "an earlier session's run was made of it"


def test_a_tuned_way_with_documents_takes_its_index_and_its_run(home, tmp_path, monkeypatch):
    c = context_of(tmp_path, Told(str), found={n: Found((), "", 0.5) for n in range(1, 31)})
    c.index_seconds = 40.0
    for name, answer in {
        "tuning_recipe": lambda *_: SimpleNamespace(command="settle tune"), "tuned_model": lambda *_: None,
        "tuned": lambda *_: Tuned("made", "r", 300.0), "with_fact_indexed_again": lambda _, way: way,
    }.items():  # fmt: skip
        monkeypatch.setattr(ways, name, answer)
    way = ways._of_weights(c, TUNE_DOCUMENTS)
    assert way.build_seconds == 340.0 and way.search_seconds == 0.5 and "--ask" in way.command
    way = ways._of_weights(c, TUNE)
    assert way.build_seconds == way.change_seconds == 300.0 and way.command == "settle chat r"


def test_a_changed_answer_changes_nothing_else():
    (row,) = rows(1)
    changed = ways._answering(row, "new")
    assert (
        changed.messages == [row.messages[0], {"role": "assistant", "content": "new"}]
        and row.messages[1]["content"] == "0"
    )


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
        settings = ChooseSettings.model_validate({"examples": "rows.jsonl", **asked})
        return choose_module.choice_folder(settings, ref, rows).path

    first = folder()
    assert first.name == "rows" and folder() == first and folder(threads=3, dry=True) == first
    assert folder(rows=(2,)).name == "rows-2" and folder(seed=5) not in (first, folder(rows=(2,)))
    with pytest.raises(UsageError, match="rows is another choice"):
        folder(rows=(9,), name="rows")
    with pytest.raises(UsageError, match="not a usable name"):
        folder(rows=(9,), name="../x")
    named = folder(rows=(9,), name="mine")
    assert named.name == "mine" and folder(rows=(9,), name="mine") == named == folder(rows=(9,))
    kept = ChoiceFolder(first)
    kept.keep("a", 1)
    kept.keep("b", 2)
    kept.keep("b", 3)
    assert json.loads((first / PROGRESS).read_text()) == {"a": 1, "b": 3}
    assert (kept.kept("b", int), kept.kept("b", dict[str, int]), kept.kept("c", int)) == (3, None, None)


def test_a_finished_choice_answers_as_it_was_measured(home, tmp_path, monkeypatch):
    folder = ChoiceFolder(home / "choices" / "mine")
    folder.path.mkdir(parents=True)
    (tmp_path / "m.gguf").write_bytes(b"x")
    setup = Setup("Be brief.", (("x", "y"),))
    model = Told(lambda case: "" if "nothing" in case.question else case.messages[0]["content"], tmp_path / "m.gguf")
    before = {"system": setup.system, "shots": [["x", "y"]], "grammar": "", "collection": "", "max_tokens": 5}
    before |= {"labels": [], "weights": str(tmp_path / "m.gguf"), "adapter": None, "model": "told"}
    write_json(folder.path / "way-documents-tune.json", before)
    kept = folder.kept_way("documents + tune")
    assert kept.setup == setup and kept.ref == model.ref
    folder.keep_way("documents + tune", kept)
    assert json.loads((folder.path / "way-documents-tune.json").read_text()) == before
    with pytest.raises(UsageError, match="there are: none yet"):
        choose_module.answer("mine", "q", None, Events())
    write_json(folder.path / RESULT, {"chosen": "documents + tune"})
    with pytest.raises(UsageError, match="no finished choice 'other'; there are: mine"):
        choose_module.answer("other", "q", None, Events())
    with pytest.raises(UsageError, match="nothing to answer"):
        choose_module.answer("mine", "  ", None, Events())
    seen = []
    monkeypatch.setattr(choose_module, "_model", lambda kept, threads: model)
    assert choose_module.answer("mine", "q", None, Events(listeners=[seen.append])) == 0 and model.closed == 1
    assert [event.text for event in seen if isinstance(event, AnswerText)] == ["Be brief.\n"]
    assert choose_module.answer("mine", "nothing", None, Events()) == 3 and model.closed == 2
    monkeypatch.undo()
    (tmp_path / "m.gguf").unlink()
    monkeypatch.setenv("SETTLE_HOME", str(home))
    with pytest.raises(UsageError, match="is gone"):
        choose_module.answer("mine", "q", None, Events())
    write_json(folder.path / RESULT, {"chosen": "tune"})
    with pytest.raises(UsageError, match="no way 'tune' that is ready"):
        choose_module.answer("mine", "q", None, Events())


def test_passages_are_numbered_before_the_question():
    assert with_passages("q?", ()) == "q?"
    assert with_passages("q?", ("a", "b")) == "Passages:\n\n[1] a\n\n[2] b\n\nQuestion: q?"
