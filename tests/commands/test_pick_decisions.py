"""`settle pick` of decision models, on labelled rows."""

import json

import pytest

from settle.cli import main
from settle.data.decisions.questions import Question
from settle.formats.gguf import export_gguf
from settle.infer.decider import Decider
from settle.jobs.pick import candidates as candidates_module
from tests.decision_model import keys, write
from tests.trained import adapter, merged

QUESTION = {"type": "choice", "instructions": "Which one?", "criteria": {"red": None, "green": None, "blue": None}}
WORDS = ("self", "return", "class", "parser", "action", "value", "raise", "import", "yield", "lambda")


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    """Two decision models, and rows whose labels are what the first one decides."""
    folder = tmp_path_factory.mktemp("decisions")
    write(folder / "best.gguf")
    other = merged(tiny.weights, adapter(tiny.part, strength=0.5))
    held = keys().metadata("llama")
    export_gguf(tiny.part, other, tiny.tokenizer, folder / "other.gguf", "f32", {"name": "other"}, held)
    question, rows = Question.from_json(QUESTION), []
    with Decider(folder / "best.gguf") as decider:
        for one in WORDS:
            for two in WORDS[:4]:
                state = f"def {one}({two}):"
                label = decider.decide(state, [question])[0].key
                rows.append({"state": state, "questions": {"colour": QUESTION}, "targets": {"colour": label}})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No models of other programs."""
    monkeypatch.setattr(candidates_module, "neighbours", lambda: ())


def test_the_model_that_decides_as_the_labels_say_is_picked(files, home, capsys):
    both = ("--models", str(files / "other.gguf"), "--models", str(files / "best.gguf"))
    code = main(
        ["pick", "decide a colour", "--prompts", str(files / "rows.jsonl"), *both, "--context", "256", "--json"]
    )
    out, err = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert (
        code == 0 and result["measure"] == "accuracy" and "40 rows" in err and "3 options, scored by accuracy" in err
    ), err
    by_name = {model["name"]: model for model in result["models"]}
    assert by_name["best"]["score"] == 1 >= by_name["other"]["score"]
    assert by_name["best"]["measured"]["speed"]["median"] > 0 and set(by_name["best"]["predicted"]) == {"memory"}


def test_a_model_that_does_not_decide_is_named_with_what_to_do(files, tiny, home, capsys):
    export_gguf(tiny.part, tiny.weights, tiny.tokenizer, files / "plain.gguf", "f32", {"name": "plain"})
    given = ["pick", "decisions", "--prompts", str(files / "rows.jsonl"), "--models", str(files / "plain.gguf")]
    assert main(given) == 2
    err = capsys.readouterr().err
    assert "plain is left out: it is no decision model" in err and "--objective decision" in err


def test_rows_without_labels_are_refused(files, home, capsys, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": "x"}\n')
    given = ["pick", "decisions", "--prompts", str(tmp_path / "rows.jsonl"), "--models", str(files / "best.gguf")]
    assert main(given) in (1, 2) and "rows.jsonl" not in capsys.readouterr().out
