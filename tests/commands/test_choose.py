"""`settle choose` with a real model in real children, and documents that are really indexed."""

import copy
import inspect
import json
import re
from argparse import ArgumentParser

import pytest

from settle.base.errors import EngineError
from settle.base.event_log import Events
from settle.base.stop_signals import Stopping
from settle.cli import main
from settle.evaluate.compare.cases import asking
from settle.evaluate.tasks import named
from settle.formats.gguf import export_gguf
from settle.jobs.choose import documents, ways
from settle.jobs.choose.answerer import TUNE, Built, ModelInTurns, Setup, answers
from settle.jobs.choose.context import ChoiceFolder, ChooseContext
from settle.jobs.choose.examples import form_of, read_examples
from settle.jobs.choose.ways import Tuned
from settle.jobs.settings import ChooseSettings, IndexSettings
from settle.library.resolve import resolve_gguf
from tests.retrieve.conftest import joined  # noqa: F401  a fixture

THINGS = ("mill", "loom", "pump", "lamp", "kiln", "drum", "sail", "vane", "bell", "rope", "cart", "oven")
LINES = inspect.getsource(inspect.getmodule(ArgumentParser)).splitlines()
QUESTIONS = list(dict.fromkeys(line.strip()[:17] for line in LINES if len(line.strip()) > 24))[:160]
# turns without signs of their own, which the model never saw: an answer completes the last one
TEMPLATE = "{%- for message in messages -%}{{- message['content'] -}}{%- endfor -%}"


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """A model that chats, examples that it answers rightly as it is, and documents about other things."""
    folder = tmp_path_factory.mktemp("choose")
    tokenizer = copy.copy(tiny.tokenizer)
    tokenizer.chat_template = TEMPLATE
    export_gguf(tiny.part, tiny.weights, tokenizer, folder / "tiny.gguf", "f32")
    with pytest.MonkeyPatch.context() as patch, ModelInTurns(resolve_gguf(folder / "tiny.gguf"), 6, 1) as model:
        patch.setenv("SETTLE_HOME", str(folder / "home"))
        replies = answers(Setup().over(model, "tiny"), [asking(question) for question in QUESTIONS])
    rows = [{"prompt": q, "completion": r.text} for q, r in zip(QUESTIONS, replies, strict=True) if r.text.strip()]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:45]))
    (folder / "docs").mkdir()
    for thing in THINGS:
        (folder / "docs" / f"{thing}.md").write_text(f"# {thing}\n\nNobody knows what the {thing} is for.\n")
    return folder


@pytest.fixture(autouse=True)
def hashed(monkeypatch, joined):  # noqa: F811
    """The embedder of the tests, which nothing has to be downloaded for."""
    monkeypatch.setattr(documents, "IndexSettings", lambda: IndexSettings.model_validate({"embedder": "hashed"}))


def run(capsys, *args):
    code = main(["choose", *map(str, args), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out.strip().startswith("{") else {}, err


def test_what_the_model_can_already_needs_nothing_else(made, home, capsys, monkeypatch):
    given = (made / "rows.jsonl", "--docs", made / "docs", "--model", made / "tiny.gguf", "--score", "exact")
    given += ("--max-tokens", 6, "--threads", 1, "--name", "first")
    code, result, err = run(capsys, *given)
    assert (code, result["chosen"], result["verdict"]) == (0, "zero-shot", "take"), err
    by_name = {way["name"]: way for way in result["ways"]}
    assert by_name["zero-shot"]["score"] == 1.0 and by_name["zero-shot"]["tokens"] > 0 < by_name["zero-shot"]["memory"]
    assert result["triage"]["prediction"] == "zero-shot" and result["triage_agrees"]
    assert "tune" in result["triage"]["ruled_out"] and "tune" not in by_name
    assert "would be seen in four cases of five" in err and "all of it takes about" in err
    page = (home / "choices" / "first" / "page.md").read_text()
    assert "take zero-shot" in page and "settle chat" in page
    # the same command again asks nothing: the answers are on the disk
    with monkeypatch.context() as patch:
        patch.setattr(ModelInTurns, "measure", lambda self, case: pytest.fail("nothing is left to ask"))
        again = run(capsys, *given)
    assert again[0] == 0 and again[1]["ways"] == result["ways"], again[2]
    assert result["audit"]["level"] == "observed" and result["audit"]["sentence"] in page
    assert len(list((home / "choices" / "first" / "audit").iterdir())) == 2  # one a session
    row = json.loads((made / "rows.jsonl").read_text().splitlines()[0])
    assert main(["choose", "first", "--ask", row["prompt"], "--threads", "1"]) == 0
    assert row["completion"] in capsys.readouterr().out


def test_a_stop_between_ways_is_resumed_and_a_way_that_fails_is_reported(made, home, capsys, monkeypatch):
    def stop(recipe, events):
        raise KeyboardInterrupt

    def fail(recipe, events):
        raise EngineError("the tuning broke", "mend it")

    given = (made / "rows.jsonl", "--model", made / "tiny.gguf", "--score", "exact", "--max-tokens", 6)
    given += ("--threads", 1, "--every")
    monkeypatch.setattr(ways, "tuned", stop)
    code, _, err = run(capsys, *given)
    assert code == 130 and "the same command continues" in err
    (choice,) = (home / "choices").iterdir()
    known = (choice / "progress.json").read_text()
    monkeypatch.setattr(ways, "tuned", fail)
    code, result, err = run(capsys, *given)
    assert code == 0 and [f["name"] for f in result["failed"]] == ["tune"], err
    assert "tune could not be built: the tuning broke" in err and "nothing is known of tune" in result["why"]
    assert {way["name"] for way in result["ways"]} == {"zero-shot", "prompt"}
    assert result["folder"] == str(choice)
    for key, value in json.loads(known).items():  # the prompt, the pace and the names that were found before the stop
        if key != "spent":
            assert json.loads((choice / "progress.json").read_text())[key] == value, key
    assert {"zero-shot", "prompt", "tune"} <= set(result["actual_seconds"])


def test_too_few_examples_are_refused_before_anything_runs(made, home, capsys):
    rows = (made / "rows.jsonl").read_text().splitlines()[:9]
    (made / "few.jsonl").write_text("\n".join(rows) + "\n")
    code, _, err = run(capsys, made / "few.jsonl", "--model", made / "tiny.gguf")
    assert code == 1 and "show no difference" in err and "give examples enough for" in err
    code, _, err = run(capsys, made / "rows.jsonl")
    assert code == 2 and "no model is named" in err
    code, _, err = run(capsys, "nothing", "--ask", "x")
    assert code == 2 and "no finished choice" in err


def test_a_changed_fact_is_tuned_again_on_examples_that_differ_in_it(made, home, monkeypatch, tmp_path):
    """The model that the run is said to make is the one that answers the examples as they were."""
    base = resolve_gguf(made / "tiny.gguf")
    runs = []

    def tuned(recipe, events):
        runs.append(recipe)
        return Tuned(base, recipe.run, 2.0)

    monkeypatch.setattr(ways, "tuned", tuned)
    settings = ChooseSettings(examples=made / "rows.jsonl", model=str(made / "tiny.gguf"), threads=1)
    examples = read_examples(settings.examples, None, 0.4, Events())
    with ModelInTurns(base, 6, 1) as model:
        known = {"ref": base, "examples": examples, "task": named("exact")}
        c = ChooseContext(ChoiceFolder(tmp_path), settings, Events(), Stopping(), **known)
        c.model = model
        way = ways.with_fact_tuned_again(c, Built(TUNE, model, Setup(), ""))
    assert way.change_seconds == 2.0 and "not learned" in way.change_note
    rows = [json.loads(line)["messages"][-1]["content"] for line in runs[0].rows.read_text().splitlines()]
    assert sum(a != b.reference for a, b in zip(rows, examples.train_cases, strict=True)) == 1
    assert runs[0].run.endswith("-tune-changed")
    assert ways.with_fact_tuned_again(c, way) == way and len(runs) == 1


def test_an_answer_is_held_to_the_form_of_the_examples(made, home):
    forms = {
        r"-?\d+(\.\d*)?": ["14", "-2.5"],
        r"\d[\d-]*": ["2026-11-28"],
        r'\{"name": ?("|n|t|f|-|\d).*': ['{"name": "mill", "is big": true}'],
        "red|blue": [],
    }
    with ModelInTurns(resolve_gguf(made / "tiny.gguf"), 12, 1) as model:
        for pattern, answers_of_form in forms.items():
            form = form_of(answers_of_form, [] if answers_of_form else ["red", "blue"])
            (reply,) = answers(Setup(grammar=form.grammar).over(model, "tiny"), [asking(QUESTIONS[0])])
            assert re.fullmatch(pattern, reply.text), reply.text
