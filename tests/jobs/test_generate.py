"""The batch job, with a real model in llama.cpp."""

import csv
import json

import pytest

import settle
from settle.base.errors import SettleError, UsageError
from settle.cli import main
from settle.formats.gguf import export_gguf
from settle.infer.engine import Engine
from settle.infer.table import TableRow
from settle.jobs.generate import require_places, row_prompt
from tests.trained import trained

SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["sea", "wind"]}, "sure": {"type": "boolean"}},
    "required": ["label", "sure"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tiny = trained()
    return export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path_factory.mktemp("batch") / "tiny.gguf", "f32")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(model, rows, *options, out=None):
    limit = [] if "--max-tokens" in options else ["--max-tokens", "8"]
    return main(["generate", str(model), str(rows), *(["--out", str(out)] if out else []), *limit, *options])


def test_each_row_gets_the_answer_that_the_model_gives_alone(model, home, tmp_path):
    prompts = [f"def f{i}(self" for i in range(20)]
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": prompt, "id": i} for i, prompt in enumerate(prompts)])
    out = tmp_path / "out.jsonl"
    assert run(model, rows, out=out) == 0
    written = read_rows(out)
    assert [(row["id"], row["prompt"]) for row in written] == list(enumerate(prompts))
    with Engine(model, 512, threads=1) as engine:
        for row in written[::7]:
            case = row_prompt(TableRow({"prompt": row["prompt"]}), 1).case
            ids = engine.turns(case.messages) if engine.takes_turns else engine.plain(case.prompt)
            assert row["completion"].strip() == engine.answer(ids, 8).text.strip()


def test_the_same_command_makes_no_answer_twice(model, home, tmp_path, capsys):
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"wind {i}"} for i in range(6)])
    assert run(model, rows, "--json") == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    write_rows(rows, [{"prompt": f"wind {i}"} for i in range(9)])
    assert run(model, rows, "--json") == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (first["known"], first["answers"]) == (0, 6)
    assert (again["known"], again["answers"]) == (6, 9)


def test_several_samples_differ_and_are_the_same_for_a_seed(model, home, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "the sea"}])
    written = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "200")):
        out = tmp_path / f"{name}.jsonl"
        assert run(model, rows, "--samples", "6", "--temperature", "1.5", "--seed", seed, out=out) == 0
        written.append([(row["sample"], row["completion"]) for row in read_rows(out)])
    assert written[0] == written[1] != written[2]
    assert [sample for sample, _ in written[0]] == list(range(6))
    assert len({text for _, text in written[0]}) > 1


def test_answers_fit_a_schema(model, home, tmp_path):
    pytest.importorskip("jsonschema_rs")
    rows, schema = tmp_path / "rows.csv", tmp_path / "schema.json"
    rows.write_text("id,text\n1,salt over stone\n2,gulls turn\n")
    schema.write_text(json.dumps(SCHEMA))
    out = tmp_path / "out.csv"
    options = ["--template", "Label: {text}", "--json-schema", str(schema), "--max-tokens", "40"]
    assert run(model, rows, *options, out=out) == 0
    written = list(csv.DictReader(out.read_text().splitlines()))
    assert [(row["id"], row["prompt"]) for row in written] == [
        ("1", "Label: salt over stone"),
        ("2", "Label: gulls turn"),
    ]
    for row in written:
        answer = json.loads(row["completion"])
        assert answer["label"] in ("sea", "wind") and isinstance(answer["sure"], bool)


def test_an_answer_that_was_cut_short_of_its_schema_is_no_answer(model, home, tmp_path, capsys):
    pytest.importorskip("jsonschema_rs")
    rows, schema = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a"}]), tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    assert run(model, rows, "--json-schema", str(schema), "--max-tokens", "2") == 3
    assert "the answer was cut and is no JSON" in capsys.readouterr().err


def test_a_row_without_a_prompt_is_named_and_the_others_are_answered(model, home, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "the sea"}\n{"prompt": " "}\n{"broken\n{"prompt": "' + "word " * 3000 + '"}\n')
    out = tmp_path / "out.jsonl"
    assert run(model, rows, "--context", "512", out=out) == 0
    written = read_rows(out)
    assert [set(row) & {"completion", "error"} for row in written] == [{"completion"}, {"error"}, {"error"}, {"error"}]
    assert written[1]["error"] == "the prompt is empty" and "line 3" in written[2]["error"]
    assert "tokens" in written[3]["error"]
    assert "3 of 4 answers are missing: the prompt is empty" in capsys.readouterr().err


def test_a_template_names_columns():
    with pytest.raises(UsageError, match="names {town}; the rows have id, city"):
        require_places("In {town}?", ["id", "city"])
    with pytest.raises(UsageError, match="names no column"):
        require_places("In which country?", ["id", "city"])
    require_places('Answer as {"country": …}: {city}', ["id", "city"])
    case = row_prompt(TableRow({"city": "Rome {id}", "id": 3}), 1, "{city}, {id}", "Be brief.").case
    assert [m["content"] for m in case.messages] == ["Be brief.", "Rome {id}, 3"]


def test_the_last_answer_of_a_conversation_is_made_anew():
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    case = row_prompt(TableRow({"messages": turns}), 1).case
    assert [m["content"] for m in case.messages] == ["Hi"]
    assert row_prompt(TableRow({"messages": turns[1:]}), 1).problem == "the prompt is empty"
    assert "give `prompt`" in row_prompt(TableRow({"a": 1, "b": 2}), 1).problem


def test_python(model, home):
    answers = settle.generate(
        str(model), ["the sea", [{"role": "user", "content": "the sea"}]], samples=2, max_tokens=4
    )
    assert answers[0] == answers[1] and len(answers[0]) == 2
    with pytest.raises(SettleError, match="prompt 1 has no answer: the prompt is empty"):
        settle.generate(str(model), [""])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--template", "x {b}"], "names {b}; the rows have prompt"),
        (["--json-schema", "none.json"], "cannot read none.json"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_model_loads(options, said, model, home, tmp_path, capsys):
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a"}])
    assert run(model, rows, *options) == 2
    assert said in capsys.readouterr().err
