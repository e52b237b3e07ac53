"""Every reader of the registry serves all three uses: an index, training on text, and tuning on rows."""

import json
import mailbox
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from settle.base.event_log import Events
from settle.base.python_command import extra_command
from settle.base.registry import part
from settle.data.corpus import Ledger, find_files
from settle.data.prepare import prepare
from settle.data.rows.prepare import prepare_rows
from settle.data.settings import DataSettings, RowSettings
from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer
from settle.documents.reader_pool import RowReader, read_all
from settle.documents.readers import Reader, reader_of
from settle.documents.walk import Walk
from settle.retrieve.index.chunkers.structure import Structure
from settle.retrieve.index.collection import IndexParts, create
from settle.retrieve.index.stores.lancedb import Lancedb
from settle.retrieve.index.update_index import update
from tests.documents import making

READERS = {name: kind for name, kind in Reader.parts().items() if name != "stuck"}
SPEECH = "the needle lies below the words"


def sample(name: str, folder: Path) -> Path:
    """A file of that kind that says SPEECH; of a kind that is not listed here, a file of text."""
    path = folder / f"a{READERS[name].suffixes[0]}"
    match name:
        case "pdf":
            making.pdf(path, [[(11, SPEECH)]])
        case "docx":
            import docx

            document = docx.Document()
            document.add_paragraph(SPEECH)
            document.save(str(path))
        case "pptx":
            from pptx import Presentation

            shown = Presentation()
            shown.slides.add_slide(shown.slide_layouts[5]).shapes.title.text = SPEECH
            shown.save(str(path))
        case "xlsx":
            import xlsxwriter

            with xlsxwriter.Workbook(path) as book:
                book.add_worksheet().write_row(0, 0, ["what", SPEECH])
        case "epub":
            making.book(path, {"a.xhtml": f"<p>{SPEECH}</p>"})
        case "mail":
            path = path.with_suffix(".mbox")
            box = mailbox.mbox(path)
            box.add(f"Subject: a\nFrom: a@b.c\n\n{SPEECH}\n".encode())
            box.close()
        case "notebook":
            path.write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": [SPEECH]}], "nbformat": 4}))
        case "parquet":
            parquet.write_table(pa.table({"text": [SPEECH]}), path)
        case "json" | "jsonl":
            path.write_text(json.dumps({"text": SPEECH}))
        case "csv":
            path.write_text(f"id,text\n1,{SPEECH}\n")
        case _:
            path.write_text(SPEECH + "\n")
    return path


@pytest.mark.parametrize("name", READERS)
def test_an_index_reads_blocks(name: str, tmp_path: Path) -> None:
    path = sample(name, tmp_path)
    assert reader_of(path.name) == name
    (file,) = Walk().files([path])
    (document,) = read_all([(Path(file.path), file.reader)])
    assert not document.error and any(SPEECH in block.text for block in document.blocks)


@pytest.mark.parametrize("name", READERS)
def test_training_reads_text(name: str, tmp_path: Path) -> None:
    path = sample(name, tmp_path)
    files = find_files([str(path), str(path.parent)], tmp_path, Ledger())
    assert [(file.name, file.reader) for file in files] == [(path.name, name)]
    with RowReader(files, lambda file, note: pytest.fail(note)) as reader:
        rows = list(reader.rows(files[0]))
    assert [row["row"] for row in rows] and any(SPEECH in row["text"] for row in rows)


@pytest.mark.parametrize("name", READERS)
def test_tuning_reads_records(name: str, tmp_path: Path) -> None:
    files = find_files([str(sample(name, tmp_path))], tmp_path, Ledger())
    with RowReader(files, lambda file, note: pytest.fail(note)) as reader:
        values = [record["value"] for record in reader.records(files[0])]
    assert values and all(isinstance(value, dict) for value in values)
    assert any(SPEECH in value["text"] for value in values)
    assert READERS[name].has_columns or all(set(value) == {"text"} for value in values)


@pytest.mark.parametrize("name", READERS)
def test_a_kind_has_a_view_of_its_own_and_names_what_it_needs(name: str) -> None:
    kind = READERS[name]
    assert kind.streams() or kind.blocks is not Reader.blocks
    assert kind.suffixes and all(suffix.startswith(".") for suffix in kind.suffixes)


WORDS = [
    "a",
    "the",
    "sea",
    "salt",
    "wind",
    "boat",
    "rope",
    "stone",
    "light",
    "far",
    "near",
    "old",
    "cold",
    "grey",
    "blue",
]


def story(seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, 120))


def test_a_new_kind_is_one_file_and_train_tune_and_index_read_it(tmp_path: Path) -> None:
    """`.notes` is read by the example of docs/develop.md, the only file that knows of it."""
    folder = tmp_path / "documents"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.notes").write_text(f"{story(2 * i)}\n----\n{story(2 * i + 1)}\n")
    corpus = prepare([str(folder)], DataSettings(), Events())
    assert corpus.ledger["read"] == corpus.ledger["kept"] == 12
    assert {source["kind"] for source in corpus.ledger["sources"]} == {"notes"}
    tokenizer = ByteBpeTokenizer.train([story(0)], 400, tmp_path / "tokenizer")
    rows = prepare_rows([str(folder)], tokenizer, RowSettings(), Events())
    assert rows.kind == "text" and rows.ledger["read"] == 12
    with create("notes") as collection:
        collection.decide(IndexParts(part("retrieve/index/embedders", "hashed")(), Lancedb(), Structure()))
        collection.follow([folder])
        report = update(collection, Events())
    assert (report.added, report.failed) == (12, []), report


def test_a_missing_package_is_named_and_a_folder_is_read_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("settle.documents.readers.find_spec", lambda name: None)
    pdf = sample("pdf", tmp_path)
    sample("markdown", tmp_path)
    ledger = Ledger()
    assert [file.name for file in find_files([str(tmp_path)], tmp_path, ledger)] == ["a.md"]
    assert list(ledger.skipped) == [f"needs pypdfium2: {extra_command('rag')}"]
    with pytest.raises(Exception, match="reading a.pdf needs pypdfium2") as caught:
        find_files([str(pdf)], tmp_path, Ledger())
    assert caught.value.fix == extra_command("rag")  # type: ignore[attr-defined]


def test_what_a_document_leaves_out_is_in_the_ledger(tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    making.pdf(folder / "a.pdf", [[(11, story(i)[:400])] for i in range(20)] + [None])
    (folder / "b.pdf").write_text("no PDF")
    corpus = prepare([str(folder)], DataSettings(clean=False), Events())
    assert corpus.ledger["omissions"] == {"a.pdf": ["page 21 is a picture: no text"]}
    assert list(corpus.ledger["skipped"]) == ["no PDF, whatever its name says"]
