"""A citation opens the exact place: each kind of file is opened again, by other means, at the place of a passage."""

import json
import mailbox
import zipfile

import docx
import pyarrow as pa
import pypdf
import pytest
from lxml import html
from pptx import Presentation
from pyarrow import parquet
from python_calamine import load_workbook

from settle.documents.blocks import Chunk
from settle.documents.readers import Reader
from settle.retrieve.index.chunkers.structure import Structure
from tests.documents import making

LINED = {
    "a.md": "---\ntitle: T\n---\n\n# One\n\nfirst words\nsecond line\n\n- a\n- needle\n\n## Two\n\n```py\nx = 1\n```\n",
    "a.txt": "NAME\n    needle - a thing\n\nBelow\n=====\nmore words\nand needle here\n\nlast\n",
    "a.rst": "Title\n=====\n\nfirst ``words``\nmore :ref:`line <x>`\n\n.. function:: open(a)\n\n   needle\n\n* item\n",
    "a.py": "import os\n\n\nclass A:\n    # needle here\n    def f(self):\n        return os\n" + "\n    x = 1\n" * 30,
    "a.toml": "[a]\nb = 1\n\n# needle here\n[c]\nd = 2\n",
    "Makefile": "all: x\n\techo needle here\n\nx:\n\ttouch x\n",
    "a.csv": 'name,what\n"a\nb",first\nc,needle here\n\nd,last\n',
    "a.jsonl": '{"q": "first"}\n\n{"q": "needle here"}\n{"q": "last"}\n',
    "a.json": '{\n "a": 1,\n "rows": [\n  {"q": "first"},\n  {"q": "needle here"}\n ]\n}\n',
    "no_ids.html": "<html>\n<body>\n<p>first</p>\n\n<p>needle here</p></body></html>",
}


def _chunks(path, tokens=9) -> list[Chunk]:
    """Passages of a document, words as tokens."""
    blocks, _ = making.read(path)
    return list(Structure(tokens=tokens).cut(blocks, lambda texts: [len(text.split()) for text in texts], 40))


def _needle(path) -> Chunk:
    return next(chunk for chunk in _chunks(path) if "needle" in chunk.text)


@pytest.mark.parametrize("name", LINED)
def test_a_line_is_the_one_where_the_passage_begins(tmp_path, name):
    path = tmp_path / name
    path.write_text(LINED[name])
    lines = LINED[name].split("\n")
    chunks = _chunks(path)
    assert any("needle" in chunk.text for chunk in chunks)
    for chunk in chunks:
        # the words of the passage that stand in its first line are those that stand there in the file
        shown = chunk.text.removeprefix("name | what\n").replace("|", " ").split()
        word = next(word for word in shown if word.strip("-") and word != "q:")
        assert word.strip(":") in lines[chunk.place.line - 1].replace("``", ""), chunk
        assert chunk.place.after("f") == f"f:{chunk.place.line}"


def test_a_page_of_a_pdf_has_the_passage(tmp_path):
    line = (11, "words and words and words")
    path = making.pdf(tmp_path / "a.pdf", [[line], None, [line, (11, ""), (11, "the needle is here")], [line]])
    chunk = _needle(path)
    assert chunk.place.after("a.pdf") == "a.pdf#page=3"
    assert "needle" in pypdf.PdfReader(path).pages[chunk.place.page - 1].extract_text()


def test_an_anchor_of_a_page_has_the_passage_below_it(tmp_path):
    path = tmp_path / "a.html"
    path.write_text("<h1 id=top>One</h1><p>x</p><h2><a name=two></a>Two</h2><p>needle</p><h3 id=three>Three</h3>")
    chunk = _needle(path)
    assert chunk.place.after("a.html") == "a.html#two"
    anchor = html.parse(str(path)).xpath("//*[@id=$at or @name=$at]", at=chunk.place.part)[0]
    assert anchor.getparent().getnext().text == "needle"


def test_a_page_or_a_heading_of_a_word_document_has_the_passage(tmp_path):
    paged, unpaged = making.word(tmp_path / "a.docx"), making.word(tmp_path / "b.docx", paged=False)
    found = {chunk.text.split("\n")[0]: chunk for chunk in _chunks(paged)}
    assert found["Turn the key to the right."].place.page == 2 and found["Install it first"].place.page == 1
    chunk = next(chunk for chunk in _chunks(unpaged) if "Turn" in chunk.text)
    texts = [paragraph.text for paragraph in docx.Document(str(unpaged)).paragraphs]
    assert chunk.place.after("b.docx") == "b.docx#Use"
    assert texts.index(chunk.text) == texts.index(chunk.place.part) + 1


def test_a_slide_has_the_passage(tmp_path):
    path = making.slides(tmp_path / "a.pptx")
    chunk = next(chunk for chunk in _chunks(path) if "group" in chunk.text)
    assert chunk.place.page == 2
    shapes = Presentation(str(path)).slides[chunk.place.page - 1].shapes
    assert any(
        "inside a group" in inner.text_frame.text
        for group in shapes
        if hasattr(group, "shapes")
        for inner in group.shapes
    )


def test_a_cell_begins_the_row(tmp_path):
    path = making.sheets(tmp_path / "a.xlsx")
    chunk = next(chunk for chunk in _chunks(path, 30) if "milk" in chunk.text)
    sheet, _, cell = chunk.place.part.rpartition("!")
    rows = list(load_workbook(str(path)).get_sheet_by_name(sheet.strip("'")).iter_rows())
    first = chunk.text.split("\n")[chunk.text.startswith("Item")]
    assert first.startswith(str(rows[int(cell[1:]) - 1][0]))


def test_a_cell_of_a_notebook_has_the_passage(tmp_path):
    path = tmp_path / "a.ipynb"
    cells = [
        {"cell_type": "markdown", "id": "one", "source": ["# Title\n", "\n", "words " * 9]},
        {"cell_type": "code", "id": "two", "source": "needle = 1\n", "outputs": [{"text": "printed"}]},
        {"cell_type": "code", "source": "y = 2"},
    ]
    path.write_text(json.dumps({"cells": cells, "nbformat": 4}))
    chunks = _chunks(path, 9)
    assert "printed" not in str(chunks)
    assert [chunk.place.part for chunk in chunks if "needle" in chunk.text] == ["cell-id=two"]
    assert making.read(path)[0][-1].place.part == "cell 3"


def test_a_chapter_and_its_anchor_have_the_passage(tmp_path):
    path = making.book(tmp_path / "a.epub", {"b.xhtml": "<h1>Two</h1><p id='n'>needle</p>", "a.xhtml": "<p>x</p>"})
    chunk = _needle(path)
    name, _, anchor = chunk.place.part.partition("#")
    with zipfile.ZipFile(path) as book:
        page = html.fromstring(book.read(name))
    assert page.get_element_by_id(anchor).text == "needle"


def test_a_line_of_a_mailbox_begins_the_message(tmp_path):
    path = tmp_path / "a.mbox"
    box = mailbox.mbox(path)
    for number, word in ((1, "words"), (2, "needle"), (3, "words")):
        box.add(f"Subject: number {number}\nFrom: a@b.c\n\nHello\n\nFrom here on {word}\n".encode())
    box.close()
    chunk = _needle(path)
    assert chunk.place.part == "message 2" and "From here on needle" in chunk.text
    below = path.read_text().split("\n")[chunk.place.line - 1 :]
    assert below[0].startswith("From ") and below[1] == "Subject: number 2"


def test_a_row_of_a_parquet_file_has_the_passage(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"q": ["first of all the rows", "the needle is here"], "n": [1, 2]}), path)
    chunk = next(chunk for chunk in _chunks(path, 9) if "needle" in chunk.text)
    assert chunk.place.part == "row 2" and chunk.text == "q: the needle is here\nn: 2"


def test_each_reader_has_its_place_tested_here():
    tested = {"markdown", "text", "rst", "code", "csv", "jsonl", "json", "html", "pdf", "docx", "pptx", "xlsx"}
    own = {name for name, kind in Reader.parts().items() if kind.__module__.startswith("settle.")}
    assert own == tested | {"notebook", "epub", "mail", "parquet"}
