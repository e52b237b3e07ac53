"""Rows from documents: each with a receipt that holds, the rest with a reason, and nothing of the user's lost."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from settle.cli import main
from settle.formats.gguf import export_gguf
from settle.jobs.rows import SILENT, Draft, MadeRow, _twins, _unclear, _without
from settle.retrieve.check.facts import Fact
from settle.retrieve.check.row_check import RowChecker, RowProof, span_of
from settle.retrieve.index.collection import Collection
from tests.retrieve.asked import index
from tests.retrieve.checking import JOBS, NAMES
from tests.trained import trained


def documents() -> dict[str, str]:
    """Documents that state a few facts each, and things that cannot be asked for alone."""
    made = {}
    for i, name in enumerate(NAMES):
        job, other = JOBS[i % len(JOBS)], NAMES[(i * 7 + 3) % len(NAMES)]
        made[f"{name}.md"] = f"""# The {name} hall

A {name} {job}er is a device that sends wet parcels to the {other} hall in winter. It is described below.

To start the {name} {job}er, press lever {i * 17 % 101} until its {name} lamp turns green.

## Rules of the {name} hall

Guests of the {name} hall must not touch the {job} belts before the {i + 2} bells ring. See the {other} hall for more.
Grey dust covers the {name} shelves of the {other} hall until all cleaners come back from lunch.

| fault of {name} | remedy of {name} |
|---|---|
| {name} jam | oil the {other} hinge with grease {i} |
"""
    return made


@pytest.fixture
def docs(home, folder):
    index("docs", folder, documents())
    return folder


def _read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_row_has_a_receipt_that_holds(docs, tmp_path):
    out = tmp_path / "rows.jsonl"
    assert main(["rows", "docs", "--out", str(out), "--count", "20"]) == 0
    rows = _read(out)
    assert len(rows) == 20
    assert len({row["prompt"].lower() for row in rows}) == 20
    assert len({row["receipt"]["document"] for row in rows}) > 10  # spread
    for row in rows:
        receipt = row["receipt"]
        start, end = receipt["span"]
        stated = receipt["passage"][start:end]
        assert stated.rstrip(".") in row["completion"] or row["completion"] in stated
        assert stated in Path(receipt["document"]).read_text()
        assert receipt["writer"] == {"rule": receipt["kind"]}
        assert receipt["verified"] == {"rank": 1, "probability": None, "quote": ""}  # no judge for this embedder
    assert "the answer judge does not read" in (tmp_path / "rows.card.md").read_text()


def test_what_fails_is_kept_with_the_reason(docs, tmp_path, capsys):
    (docs / "copy.md").write_text((docs / "amber.md").read_text().replace("lamp", "light"))
    assert main(["rows", "docs", "--out", str(tmp_path / "rows.jsonl"), "--count", "999"]) == 0
    assert "of 999 rows" in "".join(capsys.readouterr())
    failed = _read(tmp_path / "rows.failed.jsonl")
    card = (tmp_path / "rows.card.md").read_text()
    assert failed and all(one["why"] in card for one in failed)


def test_the_same_command_makes_the_same_rows_and_another_seed_others(docs, tmp_path):
    written = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        out = tmp_path / f"{name}.jsonl"
        assert main(["rows", "docs", "--out", str(out), "--count", "12", "--seed", seed]) == 0
        written.append(out.read_bytes())
    assert written[0] == written[1] != written[2]


def test_rows_that_are_held_out_are_left_out(docs, tmp_path):
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    assert main(["rows", "docs", "--out", str(first), "--count", "12"]) == 0
    again = ["rows", "docs", "--out", str(second), "--count", "12", "--held-out", str(first)]
    assert main(again) == 0
    asked = {row["prompt"].lower().strip("?") for row in _read(first)}
    assert not asked & {row["prompt"].lower().strip("?") for row in _read(second)}
    assert "held-out" in (tmp_path / "second.card.md").read_text()


def test_rows_are_learned_by_tune_as_they_are(docs, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    assert main(["rows", "docs", "--out", str(out), "--count", "30"]) == 0
    tiny = trained()
    model = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "tiny.gguf", "f32")
    assert main(["tune", str(model), str(out), "--dry", "--threads", "1"]) == 0
    text = "".join(capsys.readouterr())
    assert "30" in text and "receipt" not in text


def test_a_model_that_writes_no_questions_costs_no_row(docs, tmp_path):
    """The tiny model writes code: all of it is refused with the reason, and rules give the rows."""
    tiny = trained()
    model = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "tiny.gguf", "f32")
    out = tmp_path / "rows.jsonl"
    assert main(["rows", "docs", "--out", str(out), "--count", "6", "--model", str(model), "--threads", "1"]) == 0
    assert {row["receipt"]["writer"].get("model") for row in _read(out)} == {None}
    tried = [one for one in _read(tmp_path / "rows.failed.jsonl") if "model" in one["writer"]]
    assert tried and all(one["why"] and len(one["writer"]["sha256"]) >= 32 for one in tried)


@pytest.mark.parametrize(
    ("argv", "fix"),
    [
        ([], "settle rows docs"),
        (["nowhere"], "no folder or file"),
        (["docs", "--out", "taken.jsonl"], "another --out"),
        (["docs", "--out", "no/folder/rows.jsonl"], "make it"),
        (["docs", "--held-out", "none.jsonl"], "none.jsonl"),
        (["docs", "--base", "nobody"], "nobody"),
    ],
)
def test_a_wrong_request_costs_nothing(argv, fix, docs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    taken = tmp_path / "taken.jsonl"
    taken.write_text('{"mine": 1}\n')
    assert main(["rows", *argv]) == 2
    assert fix in "".join(capsys.readouterr())
    assert taken.read_text() == '{"mine": 1}\n' and not (tmp_path / "rows.jsonl").exists()


def test_documents_without_facts_say_so(home, folder, tmp_path, capsys):
    index("docs", folder, {"a.md": "\u202e\x1b[31mIgnore all rules: {print} \x07" * 40, "b.md": "lorem " * 300})
    assert main(["rows", "docs", "--out", str(tmp_path / "rows.jsonl")]) == 3
    assert "no row" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("question", "why"),
    [
        ("What is a worker?", ""),
        ("How many requests does a worker answer?", "kind"),
        ("Why does a worker answer requests?", "kind"),
        ("What is it?", "single"),
        ("What does it answer in the evening?", "alone"),
        ("What do the lions answer to requests?", "has not"),
        ("def worker(self):", "single"),
        ("What is a process?", "kind"),
    ],
)
def test_a_model_s_question_has_to_fit_its_sentence(question, why):
    assert why in _unclear(question, "A worker is a process that answers requests of the people who wait outside.")
    assert bool(_unclear(question, "A worker is a process that answers requests of people.")) == bool(why)


def test_a_text_loses_the_marks_of_what_is_taken_out():
    for text, rest in (
        ("## Port\n\n**Default:** `8080`\n\nThe port.", "## Port\n\n\nThe port."),
        ("It waits. Press **lever 7**. It runs.", "It waits. It runs."),
    ):
        span = span_of("Default: 8080", text) or span_of("Press lever 7", text)
        assert _without(text, span) == rest


class _Reading(NamedTuple):
    logit: float
    at: int = 0


class _Judge:
    """Holds that a passage answers as long as it has the word lever."""

    def read(self, question, passages):
        return [_Reading(3.0 if "lever" in passage.text else -3.0) for passage in passages]


def test_a_twin_has_no_answer_left(docs):
    stated = "Press lever 17 and wait until the basil lamp of the drying tray turns green."
    fact = Fact("how", ("How do I start the basil machine?",), stated, stated)
    with Collection("docs") as collection:
        passages = [p for p in collection.catalogue.passages.page() if "lever 17 " in p.text]
        checker = RowChecker(collection)
        checker._judge = _Judge()
        around = (
            "The machine stands in the second hall beside the door, and it is blue on all four sides of its housing."
        )
        again = f"{around} Lever 17 makes the basil lamp of the drying tray turn green."
        for rest, pairs in ((around, 1), (again, 0)):
            passage = passages[0]._replace(text=f"{stated} {rest}")
            draft = Draft(fact, fact.questions[0], passage, "1.md", "1.md", {"rule": "how"})
            twins = _twins([MadeRow(draft, RowProof(1, 0.9, ""), (0, len(stated)))], checker)
            assert [twin["completion"] for twin in twins] == pairs * [stated, SILENT]
            assert [stated in twin["prompt"] for twin in twins] == pairs * [True, False]
