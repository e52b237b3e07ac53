"""A check says what is found, how surely, and which documents are found worst."""

import json

import pytest

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.formats.gguf import export_gguf
from settle.infer.engine import Engine
from settle.retrieve.answer.evidence import weights_for
from settle.retrieve.check.check import check
from settle.retrieve.check.check_report import PAGE, PICTURE, RESULT, emit_tables, page, write_files
from settle.retrieve.index.collection import Collection
from tests.records import into
from tests.retrieve.asked import index
from tests.retrieve.checking import documents
from tests.trained import trained


@pytest.fixture
def collection(home, folder):
    texts = documents(24) | {"empty.md": "", "bad.txt": "\0\1\2"}
    index("docs", folder, texts)
    with Collection("docs") as opened:
        yield opened


def test_figures_with_intervals_and_the_worst_documents(collection, tmp_path):
    told = []
    checked = check(collection, Events(listeners=[into(told)]), 60)
    assert checked.questions == 60
    assert checked.is_calibrated
    assert weights_for(collection.catalogue).questions == 60
    values = [checked.recall[k].value for k in range(1, 11)]
    assert values == sorted(values)
    assert checked.recall[10].value > 0.8
    assert checked.mrr.low <= checked.mrr.value <= checked.mrr.high
    assert checked.refused.value > checked.false_refusals.value
    assert checked.false_refusals.value < 0.2
    assert checked.cited is None
    assert sum(number for number, _ in checked.kinds.values()) == 60
    assert {one.path.rsplit("/", 1)[-1] for one in checked.worst[:2]} == {"empty.md", "bad.txt"}
    assert all(one.why for one in checked.worst[:2])

    emit_tables(checked, Events(listeners=[into(told)]))
    tables = [event for event in told if event["kind"] == "table"]
    assert [len(table["rows"]) for table in tables] == [7, len(checked.worst)]
    assert write_files(checked, tmp_path).read_bytes()[:4] == b"\x89PNG"
    assert "Worst documents" in (tmp_path / PAGE).read_text()
    result = json.loads((tmp_path / RESULT).read_text())
    assert result["recall"]["5"]["value"] == checked.recall[5].value
    assert result["worst"][0]["why"]
    assert result["calibration"]["rows"] == sum(map(len, checked.scores))
    assert result["calibration"]["ece"]["value"] < 0.5
    assert "The evidence as a probability" in (tmp_path / PAGE).read_text()
    assert {path.name for path in tmp_path.iterdir()} >= {PICTURE, PAGE, RESULT}


def test_a_model_asks_and_answers_some(collection, tmp_path, monkeypatch):
    """A model that writes nonsense asks nothing that is kept, and what it says is not cited, or cited wrongly."""
    tiny = trained()
    path = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "tiny.gguf", "f32")
    monkeypatch.setattr("settle.retrieve.check.check.ANSWERED", 3)
    told = []
    with Engine(path, threads=1) as engine:
        checked = check(collection, Events(listeners=[into(told)]), 6, engine)
    assert checked.questions == 6
    assert 0 <= checked.cited.low <= checked.cited.value <= checked.cited.high <= 1
    assert any(event.get("what") == "answers" for event in told)
    assert "citations" in page(checked)


def test_few_questions_do_not_calibrate(home, folder, tmp_path):
    index("few", folder, documents(3))
    with Collection("few") as collection:
        checked = check(collection, Events(), 8)
        assert not checked.is_calibrated
        told = []
        emit_tables(checked, Events(listeners=[into(told)]))
        assert "too few" in told[-1]["text"]
        write_files(checked, tmp_path)


def test_documents_without_text_cannot_be_checked(home, folder):
    index("docs", folder, {"a.md": "# A\n"})
    with Collection("docs") as collection, pytest.raises(DataError, match="no question"):
        check(collection, Events(), 10)
