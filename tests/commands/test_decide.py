"""settle decide: a text or a table in, options with their probabilities out."""

import csv
import io
import json

import pytest

from settle.cli import main
from settle.data.decisions.questions import Question
from settle.formats.gguf import export_gguf
from tests import decision_model
from tests.trained import trained

STATES = ["def parse(self)", "import sys, os", "raise ValueError('x'), y"]
TOPIC = Question.from_json(decision_model.QUESTIONS["topic"])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(decision_model.write(tmp_path_factory.mktemp("decide") / "decider.gguf"))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def best(state):
    shares = decision_model.probabilities(state, TOPIC)
    return TOPIC.keys[shares.index(max(shares))], max(shares)


def test_a_text(model, capsys):
    assert main(["decide", model, STATES[0]]) == 0
    key, share = best(STATES[0])
    out = capsys.readouterr().out
    assert out.startswith(f"{key} {share:.2f} · ") and len(out.splitlines()) == 1
    assert main(["decide", model, STATES[0], "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["answers"]["topic"]["choice"] == key and told["answers"]["topic"]["refused"] is False


def test_a_refused_answer(model, capsys):
    assert main(["decide", model, STATES[0], "--refuse-above-risk", "5%"]) == 3
    out, err = capsys.readouterr()
    assert out.startswith("refused, too unsure: ")
    # the surer 60 are right, so that 61 rows of which one is wrong still show 5 %, and 62 do not
    err = " ".join(err.split())
    assert "answers below 0.700 are refused: of the 100 rows that trained nothing 60% are as sure, and 0.0% of" in err
    assert "more than 5.0% are with a chance of at most 10%" in err


def test_a_risk_that_cannot_be_promised_is_named(home, capsys):
    """Files of an older settle do not say which rows are alike, and few rows show no small risk."""
    old = str(decision_model.write(home / "old.gguf", decision_model.keys(families=())))
    assert main(["decide", old, STATES[0]]) == 0, "it still answers"
    assert main(["decide", old, STATES[0], "--refuse-above-risk", "5%"]) == 2
    assert "does not hold the rows by which a risk can be promised" in " ".join(capsys.readouterr().err.split())
    alike = str(
        decision_model.write(home / "alike.gguf", decision_model.keys(families=tuple(i // 4 for i in range(100))))
    )
    assert main(["decide", alike, STATES[0], "--refuse-above-risk", "5%"]) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "a risk of 5.0% takes 50 rows that trained nothing, and alike.gguf has 25 unlike ones" in err
    assert "allow a risk of 10% or more, or tune on about 167 rows in all" in err
    wrong = str(decision_model.write(home / "wrong.gguf", decision_model.keys(correct=(False,) * 100)))
    assert main(["decide", wrong, STATES[0], "--refuse-above-risk", "5%"]) == 3
    assert "even the surest are wrong too often" in " ".join(capsys.readouterr().err.split())


def test_a_table_keeps_its_columns(model, home, capsys):
    rows = [["id", "text", "topic"], *([str(i), text, "?"] for i, text in enumerate(STATES)), ["3", "", "?"]]
    with (home / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=";").writerows(rows)
    assert main(["decide", model, "--rows", "rows.csv", "--out", "out.csv"]) == 0
    written = list(csv.DictReader(io.StringIO((home / "out.csv").read_text(encoding="utf-8"))))
    assert [row["text"] for row in written] == [*STATES, ""] and {row["topic"] for row in written} == {"?"}
    for row, state in zip(written, STATES, strict=False):
        key, share = best(state)
        assert row["topic_decided"] == key and float(row["topic_probability"]) == pytest.approx(share, abs=2e-3)
    assert written[3]["error"] == "the text to decide about is empty" and not written[3]["topic_decided"]
    assert "1 of 4 rows were not decided" in capsys.readouterr().err
    assert [path.name for path in home.glob(".*")] == []


def test_rows_of_json_on_stdin(model, home, capsys, monkeypatch):
    lines = [json.dumps({"state": {"code": text}, "n": n}) for n, text in enumerate(STATES)] + ["{broken"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    assert main(["decide", model, "--rows", "-", "--refuse-above-risk", "5%"]) in (0, 3)
    written = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for row, state in zip(written, STATES, strict=False):
        key, share = best(json.dumps({"code": state}))
        assert row["topic_probability"] == pytest.approx(share, abs=2e-3) and row["n"] < 3
        assert row["topic"] == (key if share >= 0.7 else None)
    assert "line 4" in written[3]["error"]


def test_other_questions(model, home, capsys):
    asked = {"raises": {"type": "noul", "instructions": "Does it raise?"}}
    asked["length"] = {"type": "score", "instructions": "How long?", "criteria": ["short", "long"]}
    (home / "q.json").write_text(json.dumps(asked))
    assert main(["decide", model, STATES[2], "--questions", "q.json"]) == 0
    out, err = capsys.readouterr()
    assert [line.partition(":")[0] for line in out.splitlines()] == ["raises", "length"] and "not calibrated" in err
    assert main(["decide", model, STATES[2], "--questions", "q.json", "--refuse-above-risk", "5%"]) == 2


@pytest.mark.parametrize(
    ("argv", "code", "named"),
    [
        ([""], 2, "the text to decide about is empty"),
        (["x", "--rows", "rows.csv"], 2, "leave one of them out"),
        (["--rows", "none.csv"], 2, "there is no file"),
        (["--rows", "two.csv"], 1, "was tuned on the column 'text'"),
        (["--rows", "empty.csv"], 1, "holds no rows"),
        (["--rows", "broken.jsonl"], 1, "holds no rows that can be read: line 1: a line that is no JSON (expecting"),
        (["x", "--questions", "none.json"], 2, "cannot read none.json"),
        (["x", "--questions", "two.csv"], 2, "is no JSON"),
        (["x", "--refuse-above-risk", "5"], 2, "is not a share"),
        (["word " * 900, "--context", "256"], 1, "with a context of 256 tokens"),
    ],
)
def test_what_is_wrong_is_said(model, home, capsys, argv, code, named):
    (home / "two.csv").write_text("a,b\n1,2\nx,y\n")
    (home / "empty.csv").write_text("")
    (home / "broken.jsonl").write_text('{"a" 1}\n')
    assert main(["decide", model, *argv]) == code
    assert named in capsys.readouterr().err.replace("\n", " ")


def test_a_model_that_decides_nothing(tmp_path, capsys):
    plain = tmp_path / "plain.gguf"
    export_gguf(trained().part, trained().weights, trained().tokenizer, plain, "f32")
    assert main(["decide", str(plain), "x"]) == 2 and "is no decision model" in capsys.readouterr().err
