"""What `settle pick` reads, measures in turns, leaves out and says, without a model."""

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest

from settle.base.errors import DataError, EngineError, UsageError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady, Say, Warn
from settle.base.statistics import Interval
from settle.evaluate.compare.cases import asking
from settle.evaluate.footprint import Measured as Figures
from settle.evaluate.tasks.exact import Exact
from settle.experiment.race import ComparedPair, Outcome, Race
from settle.jobs.pick import candidates as candidates_module
from settle.jobs.pick import pick as pick_module
from settle.jobs.pick import predict as ledger
from settle.jobs.pick.candidates import Candidate, feasible, shortlist
from settle.jobs.pick.exam import Taken, in_turns
from settle.jobs.pick.pick import Asked, PickContext, PickFolder, what_is_asked, who_can
from settle.jobs.pick.predict import Prediction, note_measured
from settle.jobs.pick.prompts import (
    LANGUAGES,
    Needs,
    Prompts,
    asks_for_decisions,
    asks_for_vectors,
    forbids_commercial_use,
    languages_in,
    needs_turns,
    read_prompts,
)
from settle.jobs.pick.verdict import Measured, PickResult, best_models, decide, draw, rows
from settle.jobs.settings import PickSettings


def taken(first=0.5, speed=10.0, reading=100.0, gigabytes=1.0, tokens=32):
    figures = (Figures(value, 0.9 * value, 1.1 * value) for value in (first, speed, reading))
    return Taken(*figures, peak_bytes=int(gigabytes * 1e9), context=64, tokens=tokens, longest_answer=16)


def test_models_are_measured_forwards_and_backwards_and_one_that_fails_once():
    asked, progress = [], []

    def one_round(ref):
        asked.append(ref)
        if ref == "b":
            raise EngineError("it died", "try another")
        return taken(speed=10.0 + len(asked), gigabytes=len(asked))

    first, second, third = in_turns(["a", "b", "c"], one_round, progress.append)
    assert asked == ["a", "b", "c", "c", "a"] and progress == [1] * 6 and second.what == "it died"
    # rounds of 11 and 15 tokens a second, and of 1 and 5 GB
    assert (first.speed.median, first.speed.least, first.speed.most) == (13.0, pytest.approx(9.9), 16.5)
    assert first.peak_bytes == 5 * 10**9 and third.peak_bytes == 4 * 10**9
    assert first.first_token.median == 0.5 and first.reading.most == pytest.approx(110.0)


def written(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_prompts_are_read_from_rows_with_answers_and_without(home, tmp_path):
    rows_of_pairs = [{"prompt": f"What is {n} plus {n * n}?", "completion": str(n + n * n)} for n in range(12)]
    known = read_prompts(written(tmp_path / "a.jsonl", *rows_of_pairs), 4, Events())
    assert known.are_answered and known.given == 12 and [c.number for c in known.cases] == [1, 4, 7, 10]
    assert len(known.families) == 4 and known.cases[1].reference == "12"
    bare = read_prompts(written(tmp_path / "b.jsonl", *({"prompt": r["prompt"]} for r in rows_of_pairs)), 99, Events())
    assert not bare.are_answered and [c.question for c in bare.cases] == [r["prompt"] for r in rows_of_pairs]
    assert all(c.prompt for c in bare.cases) and not needs_turns(bare.cases)
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    turns = read_prompts(written(tmp_path / "c.jsonl", {"messages": talk}, {"messages": talk[:1]}), 9, Events())
    assert [c.question for c in turns.cases] == ["c", "a"] and needs_turns(turns.cases)
    assert not needs_turns(turns.cases[1:])
    one_answered = [{"prompt": "q", "completion": "a"}, {"prompt": "r", "completion": " "}]
    assert not read_prompts(written(tmp_path / "d.jsonl", *one_answered), 9, Events()).are_answered


def test_a_text_is_paragraphs_or_lines(home, tmp_path):
    whole = written(tmp_path / "a.txt", "first line", "goes on", "", " second ", "", "")
    assert [c.question for c in read_prompts(whole, 9, Events()).cases] == ["first line\ngoes on", "second"]
    lines = written(tmp_path / "b.txt", "one", " two", "three")
    assert [c.question for c in read_prompts(lines, 9, Events()).cases] == ["one", "two", "three"]


def test_what_holds_no_prompts(home, tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        read_prompts(tmp_path / "none", 9, Events())
    ends_with_us = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}
    empty = {"messages": [{"role": "user", "content": " "}]}
    with pytest.raises(DataError):
        read_prompts(written(tmp_path / "a.jsonl", ends_with_us | {"messages": []}, empty), 9, Events())


def test_what_a_task_asks_for():
    assert (
        asks_for_vectors("an embedding model") and asks_for_vectors("semantic search") and asks_for_vectors("Vectors")
    )
    assert not asks_for_vectors("answer mails") and not asks_for_vectors("research")
    assert asks_for_decisions("decide which team") and asks_for_decisions("Decisions") and not asks_for_decisions("x")
    assert len(set(LANGUAGES.values())) == len(LANGUAGES)


def facts(**known):
    defaults = {"embeds": False, "reranks": False, "decision": None, "context": 2048, "template": "{{ messages }}"}
    defaults |= {"completes": False}
    return SimpleNamespace(**defaults | known)


def here(name="m", gigabytes=1.0, **known):
    ref = SimpleNamespace(adapter=None)
    return Candidate(name, "in the store", int(gigabytes * 1e9), ref=ref, **{"facts": facts(), **known})


def predicted(gigabytes=1.0, speed=None):
    figures = {"memory": Interval(gigabytes * 1e9, 0.9e9 * gigabytes, 1.1e9 * gigabytes)}
    if speed is not None:
        figures["speed"] = Interval(speed, speed / 2, speed * 2)
    return Prediction(SimpleNamespace(), {name: interval.value for name, interval in figures.items()}, figures)


@pytest.fixture
def machine(monkeypatch):
    """16 GB of memory, 10 GB of disk, and predictions that a candidate brings."""
    monkeypatch.setattr(candidates_module, "memory", lambda: SimpleNamespace(total=16e9, available=8e9))
    monkeypatch.setattr(candidates_module, "disk_free", lambda path: 10e9)
    monkeypatch.setattr(candidates_module, "predict_file", lambda ref, context, letters: getattr(ref, "p", None))


@pytest.mark.parametrize(
    ("candidate", "needs", "why"),
    [
        (here(license="cc-by-nc-4.0"), Needs(64, commercial=True), "forbids commercial use"),
        (here(license="cc-by-nc-4.0"), Needs(64), ""),
        (here(license="apache-2.0"), Needs(64, commercial=True), ""),
        (here(languages=frozenset({"en"})), Needs(64, languages=frozenset({"de"})), "said to know en only"),
        (here(languages=frozenset({"en", "de"})), Needs(64, languages=frozenset({"de"})), ""),
        (here(), Needs(64, languages=frozenset({"de"})), ""),
        (here(languages=frozenset({"en"}), named=True), Needs(64, languages=frozenset({"de"})), ""),
        (here(facts=facts(embeds=True)), Needs(64), "turns texts into vectors"),
        (here(facts=facts(embeds=True)), Needs(64, vectors=True), ""),
        (here(facts=facts(reranks=True)), Needs(64, vectors=True), "orders passages"),
        (here(), Needs(64, vectors=True), "it writes text"),
        (here(named=True), Needs(64, vectors=True), ""),
        (here(facts=facts(embeds=True)), Needs(2049, True, vectors=True), "trained for 2,048 tokens"),
        (here(facts=facts(embeds=True)), Needs(2048, True, vectors=True), ""),
        (here(), Needs(64, decides=True), "no decision model"),
        (here(facts=facts(decision={})), Needs(64, decides=True), ""),
        (here(facts=facts(decision={})), Needs(2049, True, decides=True), "trained for"),
        (here(facts=facts(decision={})), Needs(2049, decides=True), ""),
        (here(), Needs(2049, must_take_it=True), "trained for 2,048 tokens, and 2,049 are asked for"),
        (here(), Needs(2048, must_take_it=True), ""),
        (here(), Needs(2049), ""),
        (here(facts=facts(template="")), Needs(64, turns=True), "no chat template"),
        (here(facts=facts(template="")), Needs(64), "completes text and was not taught to answer"),
        (here(facts=facts(completes=True)), Needs(64), "completes text and was not taught to answer"),
        (here(facts=facts(template=""), named=True), Needs(64), ""),
        (here(), Needs(64, turns=True, tools=True), "knows no tools"),
        (here(facts=facts(template="tools")), Needs(64, turns=True, tools=True), ""),
    ],
)
def test_who_can_do_the_task_and_may(candidate, needs, why, machine):
    can, cannot = feasible([candidate], needs)
    assert ([c.name for c in can], [e.name for e in cannot]) == ((["m"], []) if not why else ([], ["m"]))
    assert not why or why in cannot[0].why


@pytest.mark.parametrize(
    ("prediction", "needs", "why"),
    [
        (predicted(18.0), Needs(64), "it needs 18.0 GB, and this machine has 16.0 GB"),
        (predicted(17.0), Needs(64), ""),  # it may need 15.3
        (predicted(1.0, 4.0), Needs(64, speed=9.0), "at most 8.0 tokens/s"),
        (predicted(1.0, 4.5), Needs(64, speed=9.0), ""),
        (predicted(1.0), Needs(64, speed=9.0), ""),
    ],
)
def test_who_fits_and_is_fast_enough(prediction, needs, why, machine):
    candidate = here()
    candidate.ref.p = prediction
    can, cannot = feasible([candidate], needs)
    assert (not cannot) if not why else why in cannot[0].why
    assert not can or can[0].prediction is prediction
    named, _ = feasible([dataclasses.replace(candidate, named=True)], Needs(64, speed=1e9))
    assert len(named) == (prediction.figures["memory"].low <= 16e9), "speed is no obstacle to one that is named"


def test_an_embedder_is_expected_to_take_memory_alone(machine):
    candidate = here(facts=facts(embeds=True))
    candidate.ref.p = predicted(1.0, 5.0)
    ((only, *_), _) = feasible([candidate], Needs(64, vectors=True))
    assert set(only.prediction.figures) == {"memory"}


def test_a_download_has_to_fit_on_the_disk(machine, monkeypatch):
    monkeypatch.setattr(candidates_module, "find_known", lambda hub: None)
    monkeypatch.setattr(candidates_module, "catalogue", lambda: {"far": SimpleNamespace(hub="x")})
    far = Candidate("far", "download", int(9.2e9))
    _, (excluded,) = feasible([far], Needs(64))
    assert "9,200 MB does not fit" in excluded.why
    assert not feasible([dataclasses.replace(far, num_bytes=int(9e9))], Needs(64))[1]
    assert "writes none" in feasible([dataclasses.replace(far, num_bytes=1, embeds=True)], Needs(64))[1][0].why


def test_the_shortlist_has_four_and_says_who_else_there_is():
    chosen, left = shortlist([here(f"m{n}", n) for n in range(1, 5)])
    assert [c.name for c in chosen] == ["m4", "m3", "m2", "m1"] and not left
    chosen, left = shortlist([here(f"m{n}", n) for n in range(1, 7)])
    assert [c.name for c in chosen] == ["m6", "m5", "m4", "m1"] and [e.name for e in left] == ["m3", "m2"]
    assert "--models m3" in left[0].why
    there = Candidate("far", "download", 9)  # what is here comes first
    chosen, left = shortlist([there, *(here(f"m{n}", n) for n in (5, 1))])
    assert [c.name for c in chosen] == ["m5", "m1", "far"] and not left


def asked_for(prompts=14, task=None, families=None, tokens=32, **needs):
    cases = [asking(f"q{n}", n) for n in range(prompts)]
    return Asked(Prompts(cases, families or list(range(prompts)), True, 20), task, Needs(64, **needs), None)


def said(events, kind=Say):
    return [event.text for event in events if isinstance(event, kind)]


def test_what_so_many_prompts_can_show_is_said_first():
    def says(asked, names=("a", "b")):
        seen = []
        race = Race(list(names), asked.prompts.families, asked.is_share)
        pick_module.say_what_can_be_seen(race, asked, Events(listeners=[seen.append]))
        return said(seen)[0]

    text = says(asked_for(40, Exact()))
    assert text.startswith("40 prompts, scored by exact match: a difference of") and "points or more" in text
    assert "too few to show any difference" in says(asked_for(5, Exact())) and "5 prompts of 20" in says(asked_for(5))
    assert "14 prompts of 20, 7 of them not alike" in says(asked_for(14, Exact(), [n // 2 for n in range(14)]))
    assert says(asked_for(14, Exact()), ["a"]).endswith("models: a")


def test_who_fails_or_is_too_slow_is_left_out_and_the_ledger_keeps_the_others(home, monkeypatch):
    monkeypatch.setattr(pick_module, "others_are_busy", lambda: False)
    measured = [taken(speed=5.0), EngineError("it died\nlater", "try"), taken(speed=20.0, tokens=64)]
    monkeypatch.setattr(pick_module, "in_turns", lambda refs, one_round, progress: measured)
    candidates = [here(name, prediction=predicted(1.0, 20.0)) for name in ("slow", "broken", "good")]
    seen = []

    def taken_by(candidates, asked):
        c = PickContext(None, None, Events(listeners=[seen.append]), None, asked=asked, candidates=candidates)
        pick_module.takes(c)
        return c.measured

    left = taken_by(candidates, asked_for(speed=9.0))
    assert [m.name for m in left] == ["good"] and left[0].taken.speed.median == 20.0
    assert said(seen) == ["slow is left out: 5.0 tokens/s were measured, and 9 are asked for"]
    assert said(seen, Warn) == [
        "broken could not be measured: it died",
        "the longest prompt has 64 tokens, which good is not asked; --context 80 makes room for it",
    ]
    # 5.5 at most were seen of it, so the ledger knows both, and neither of a busy machine
    assert [(e.model, e.figure, e.busy) for e in ledger.entries() if e.figure == "speed"] == [
        ("slow", "speed", False),
        ("good", "speed", False),
    ]
    monkeypatch.setattr(pick_module, "others_are_busy", lambda: True)
    measured[:] = [taken(speed=20.0)]
    taken_by(candidates[2:], asked_for())
    assert "keep this machine busy" in said(seen, Warn)[-1] and list(ledger.entries())[-1].busy


def test_the_ledger_says_how_near_the_predictions_were(home):
    seen = []
    ledger.show_ledger(Events(listeners=[seen.append]))
    assert [e.note for e in seen if isinstance(e, Listing)] == [
        "nothing was measured yet: `settle pick` predicts and measures"
    ]
    note_measured("near", predicted(2.0, 10.0), taken(speed=11.0, gigabytes=2.1), False)
    note_measured("far", predicted(2.0, 10.0), taken(speed=30.0, gigabytes=4.0), False)
    note_measured("busy", predicted(2.0, 10.0), taken(speed=1.0, gigabytes=2.0), True)
    seen.clear()
    ledger.show_ledger(Events(listeners=[seen.append]))
    (listing,) = (e for e in seen if isinstance(e, Listing))
    assert listing.note == "memory: median error 5%, 2 of 3 inside the interval; speed: median error 105%, 1 of 2" + (
        " inside the interval"
    )
    assert listing.rows[0][1:] == ["near", "memory", "2.00 GB", "1.80 GB to 2.20 GB", "2.10 GB", "1.05"]
    assert listing.rows[1][1:] == ["near", "speed", "10.00 tokens/s", "5.00 tokens/s to 20.00 tokens/s"] + [
        "11.00 tokens/s",
        "1.10",
    ]
    assert listing.rows[5][-1] == "0.10 (busy)" and listing.rows[4][-1] == "1.00"
    (result,) = (e.result for e in seen if isinstance(e, ResultReady))
    assert len(result["entries"]) == 6 and result["machine"] == ledger.machine_name()


def model(name, gigabytes, speed, score, asked=40, cut=0):
    return Measured(here(name, gigabytes), taken(speed=speed, gigabytes=gigabytes), score, asked, cut)


def outcome(means, pairs, left, names=("big", "small"), why=""):
    return Outcome(list(names), means, [40, 20], pairs, left, 40, why)


def pair(value, low, high, is_shown=False, more=None, early=False):
    return ComparedPair(0, 1, Interval(value, low, high), 40, 0.25, is_shown, early, more)


BIG, SMALL = model("big", 4.0, 5.0, 0.8), model("small", 1.0, 20.0, 0.78, cut=5)


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


@pytest.mark.parametrize(
    ("known", "note"),
    [
        (pair(-0.02, -0.2, -0.01), "big is rather behind: by -2 points (95 %: -20 to -1)"),
        (pair(0.0, -0.1, 0.1, more=30), "big may be ahead by 10 points at most; on these prompts it was not"),
        (pair(0.02, -0.1, 0.12), "big may be ahead by 12 points at most; more prompts would hardly decide it"),
        (pair(0.02, -0.1, 0.12, more=30), "(2 points measured): about 30 more prompts would decide"),
    ],
)
def test_what_is_known_of_the_larger_one(known, note):
    verdict = decide([BIG, SMALL], outcome([0.78, 0.78], [known], [0, 1]), "exact match", True)
    assert verdict.chosen is SMALL and note in verdict.notes[0]


def test_as_good_is_within_a_margin_and_of_equal_memory_the_faster_is_taken():
    undecided = [pair(0.06, -0.1, 0.2, more=9)]
    assert decide([BIG, SMALL], outcome([0.8, 0.74], undecided, [0, 1]), "m", True).chosen is BIG
    # without bounds it is a twentieth of the best value
    assert decide([BIG, SMALL], outcome([80.0, 76.5], undecided, [0, 1]), "m", False).chosen is SMALL
    assert decide([BIG, SMALL], outcome([80.0, 75.5], undecided, [0, 1]), "m", False).chosen is BIG
    twin = model("twin", 4.0, 7.0, 0.8)
    assert decide([BIG, twin], outcome([0.8, 0.8], undecided, [0, 1]), "m", True).chosen is twin
    shown = outcome([0.8, 0.4], [pair(0.4, 0.2, 0.6, True)], [0])
    assert decide([BIG, SMALL], shown, "m", True).sentence.startswith("take big: m 80 % on 40 prompts")
    assert decide([BIG, SMALL], shown, "m", False).sentence.endswith("than small by 0.400 (95 %: 0.200 to 0.600)")


def test_all_figures_are_in_the_result(tmp_path):
    known = outcome([0.8, 0.78], [pair(0.4, 0.2, 0.6, True, early=True)], [0], why="because")
    verdict = decide([BIG, SMALL], known, "exact match", True)
    result = PickResult.of([BIG, SMALL], known, verdict, "exact match").model_dump(mode="json")
    assert (result["chosen"], result["verdict"], result["saved"]) == ("big", "better", pytest.approx(0.25))
    assert result["pairs"][0] | {"difference": 0} == {
        "first": "big",
        "second": "small",
        "difference": 0,
        "p": 0.25,
        "shown": True,
        "prompts": 40,
        "better": "big",
        "early": True,
        "more_prompts": None,
    }
    assert [m["score"] for m in result["models"]] == [0.8, 0.78] and result["models"][1]["cut"] == 5
    assert PickResult.of([BIG], None, decide([BIG], None, "", True), "").verdict == "not measured"
    table = rows([SMALL, BIG, model("none", 1.0, 3.0, None, 0)], verdict, True)
    assert [row[0] for row in table] == ["→ big", "  small", "  none"] and table[2][1] == "–"
    assert table[0][3:5] == ["0.5", "5.0 (4.5–5.5)"] and rows([BIG], verdict, False)[0][1] == "0.800"
    assert not draw([model("none", 1.0, 3.0, None, 0)], verdict, "m", True, tmp_path / "x.png")


def test_answers_that_were_cut_are_told_where_they_are_many(home, tmp_path):
    seen, settings = [], PickSettings(task="x")
    c = PickContext(
        *(PickFolder(tmp_path), settings, Events(listeners=[seen.append]), None),
        asked=asked_for(task=Exact()),
        candidates=[],
    )
    c.outcome = outcome([0.5, 0.5], [pair(0.0, -0.2, 0.2)], [0, 1], why="nothing more can be shown")
    c.measured = [model("few", 1.0, 1.0, 0.5, cut=4), model("many", 1.0, 1.0, 0.5, cut=5)]
    pick_module.result(c)
    assert "25% of the answers were not needed: nothing more can be shown" in said(seen)
    assert [text.split(" were")[0] for text in said(seen, Warn)] == ["5 of 40 answers of many"]
    assert c.exit_code == 0
    assert list(json.loads((tmp_path / "result.json").read_text())) == list(PickResult.model_fields)


def test_what_is_asked_is_read_off_the_prompts(home, tmp_path):
    pairs = [{"prompt": f"Say {'x' * n} of {n}", "completion": f"{n}"} for n in range(1, 6)]
    path = written(tmp_path / "a.jsonl", *pairs)
    asked = what_is_asked(PickSettings(task="Answer in German", prompts=path, context="1k"), Events())
    assert asked.title == "exact match" and asked.max_tokens is None and asked.needs.languages == {"de"}
    assert asked.needs.must_take_it and asked.needs.letters == len("Say xxx of 3") and not asked.needs.tools
    bare = written(tmp_path / "b.jsonl", *({"prompt": row["prompt"]} for row in pairs))
    seen = []
    asked = what_is_asked(PickSettings(task="x", prompts=bare), Events(listeners=[seen.append]))
    assert asked.task is None and asked.max_tokens and "no right answers are given" in said(seen, Warn)[0]
    assert not asked.needs.must_take_it and asked.title == ""
    with pytest.raises(UsageError, match="no prompts are given"):
        what_is_asked(PickSettings(task="x"), Events())


def test_those_that_are_named_are_all_measured(monkeypatch, machine):
    five = [here(f"m{n}", n) for n in range(1, 6)]
    monkeypatch.setattr(pick_module, "named_candidates", lambda names: five)
    monkeypatch.setattr(pick_module, "known_candidates", lambda: (five, []))
    assert len(who_can(PickSettings(task="x", models=["m1"]), Needs(64))[0]) == 5
    chosen, excluded = who_can(PickSettings(task="x"), Needs(64))
    assert len(chosen) == 4 and [e.name for e in excluded] == ["m2"]


def test_measurements_here_take_the_mean_error_off(home):
    law = ledger.corrected("speed", 10.0, 0.3)
    assert law.value == 10.0 and law.low == pytest.approx(10 * math.exp(-1.2816 * 0.3), rel=1e-3)
    for model in ("a", "b", "c"):
        ledger.note(model, {"speed": (10.0, law, 20.0)})
    now = ledger.corrected("speed", 10.0, 0.3)
    # three errors of ln 2, against a law that counts as one more without any
    assert now.value == pytest.approx(10 * 2 ** (3 / 4)) and now.high / now.low < law.high / law.low
    assert ledger.corrected("memory", 10.0, 0.3).value == 10.0


def test_the_last_measurement_of_a_model_counts_and_a_busy_machine_does_not(home):
    said = Interval(1.0, 0.5, 2.0)
    ledger.note("a", {"speed": (1.0, said, 4.0), "memory": (1.0, said, 2.0)}, busy=True)
    assert ledger.corrected("speed", 1.0, 0.3).value == 1.0
    assert ledger.corrected("memory", 1.0, 0.3).value == pytest.approx(2**0.5)
    ledger.note("a", {"memory": (1.0, said, 1.0)})
    assert ledger.corrected("memory", 1.0, 0.3).value == 1.0


def test_a_damaged_ledger_loses_only_its_damaged_lines(home):
    ledger.note("a", {"memory": (1.0, Interval(1.0, 0.5, 2.0), 2.0)})
    path = home / "picks" / "ledger.jsonl"
    path.write_text(path.read_text() + '{"model": "torn', encoding="utf-8")
    assert [entry.model for entry in ledger.entries()] == ["a"]


@pytest.mark.parametrize(
    ("license", "forbids"),
    [
        ("cc-by-nc-4.0", True),
        ("Non-Commercial Licence", True),
        ("katanemo-research", True),
        ("apache-2.0", False),
        ("gemma", False),
        ("", False),
    ],
)
def test_licences_that_forbid_commercial_use(license, forbids):
    assert forbids_commercial_use(license) == forbids


def test_languages_are_read_off_the_task():
    assert languages_in("Answer support mails in German, or French") == {"de", "fr"}
    assert not languages_in("polish my code") and not languages_in("coding")
