"""Every kind of input becomes the same text; nothing a folder holds stops the reading."""

import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from settle.base.errors import DataError
from settle.data.corpus import Ledger, find_files
from settle.documents.blocks import Unreadable
from settle.documents.readers import Reader
from settle.documents.rows import MAX_DOCUMENT, cut

RECORDS = [{"id": i, "text": f"Row number {i}.\nIt has “two” lines, a comma; and é."} for i in range(5)]


def read(name: str, data: bytes, **settings: Any) -> list[str]:
    with tempfile.NamedTemporaryFile() as file:  # a parquet file is read by its path
        file.write(data)
        file.flush()
        with open(file.name, "rb") as stream:
            rows = list(Reader.make(name, settings).rows(stream))
    return [row.get("text", "! " + row.get("problem", "")) for row in rows]


def as_csv(separator: str) -> bytes:
    lines = [f"id{separator}text"] + [f'{r["id"]}{separator}"{r["text"]}"' for r in RECORDS]
    return "\r\n".join(lines).encode()


def as_parquet() -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(RECORDS), buffer)
    return buffer.getvalue()


TABLES = {
    "jsonl": "\n".join(map(json.dumps, RECORDS)).encode(),
    "json": json.dumps(RECORDS, indent=2).encode(),
    "csv": as_csv(","),
    "parquet": as_parquet(),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("field", [None, "text"])
def test_tables(name: str, field: str | None) -> None:
    assert read(name, TABLES[name], field=field) == [r["text"] for r in RECORDS]


@pytest.mark.parametrize("name", TABLES)
def test_a_field_that_is_not_there(name: str) -> None:
    with pytest.raises(DataError, match="'words'.*text"):
        read(name, TABLES[name], field="words")


@pytest.mark.parametrize("name", sorted(name for name, kind in Reader.parts().items() if kind.streams()))
def test_damaged_and_empty_files_are_no_crash(name: str) -> None:
    whole = TABLES.get(name, b"<p>some text</p> and more of it")
    half = whole[: len(whole) // 2]
    for data in (b"", b"\xff\xfe\x00", b"[", b"{", b"\x80" * 100, half, os.urandom(3000), b"[" * 9999):
        try:
            read(name, data)
        except Unreadable as e:
            assert str(e)


def test_other_separators() -> None:
    for separator in "\t;":
        assert read("csv", as_csv(separator)) == [r["text"] for r in RECORDS]


def test_records_without_a_usual_name() -> None:
    turns = [{"role": "user", "content": "Hi"}, "there"]
    rows = [{"question": "Why?", "n": 1, "answer": "So."}, {"messages": turns}, 3]
    data = "\n".join(map(json.dumps, rows)).encode()
    assert read("jsonl", data) == ["Why?\n\nSo.", "Hi\n\nthere", "! a record without text"]


def test_a_broken_line_is_named_and_passed_over() -> None:
    assert read("jsonl", b'{"text": "a"}\n{"text": \n\n{"text": "b"}\n') == ["a", "! a line that is no JSON", "b"]


def test_json_that_holds_its_records_under_a_key() -> None:
    assert read("json", json.dumps({"version": 1, "data": RECORDS}).encode()) == [r["text"] for r in RECORDS]
    assert read("json", json.dumps("just text").encode()) == ["just text"]


def test_long_json_list_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("settle.documents.decode._CHUNK", 7)
    assert read("json", TABLES["json"]) == [r["text"] for r in RECORDS]
    assert read("jsonl", TABLES["jsonl"]) == [r["text"] for r in RECORDS]


def test_html() -> None:
    page = """<html><head><title>T</title><style>p {x}</style></head><body><nav>Home | About</nav>
    <h1>Salt &amp; wind</h1><p>One <b>bold</b>   word,
    two lines.</p><ul><li>a</li><li>b</li></ul><pre>x = 1
  y = 2</pre><script>var a;</script><p>End</p></body></html>"""
    assert read("html", page.encode()) == [
        "Salt & wind\n\nOne bold word, two lines.\n\na\nb\n\nx = 1\n  y = 2\n\nEnd\n"
    ]


def test_notebook() -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# T\n", "words"]},
        {"cell_type": "code", "source": "x = 1", "outputs": [{"text": "no"}]},
    ]
    assert read("notebook", json.dumps({"cells": cells}).encode()) == ["# T\nwords\n\nx = 1"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("naïve".encode(), "naïve"),
        ("naïve".encode("utf-8-sig"), "naïve"),
        ("naïve".encode("utf-16"), "naïve"),
        ("naïve café déjà vu".encode("cp1252"), "naïve café déjà vu"),
        (b"ok \xff\xfe na\xc3\xafve", "ok \ufffd\ufffd naïve"),
    ],
)
def test_encodings(data: bytes, text: str) -> None:
    assert read("text", data) == [text]


def test_a_long_text_is_cut_at_a_paragraph() -> None:
    paragraph = "word " * 200 + "\n\n"
    pieces = list(cut([paragraph] * 9000))
    assert "".join(pieces) == paragraph * 9000
    assert all(len(p) <= MAX_DOCUMENT and p.endswith("\n\n") for p in pieces) and len(pieces) > 2
    without_border = list(cut(["x" * 1_000_000] * 9))
    assert max(map(len, without_border)) == MAX_DOCUMENT and sum(map(len, without_border)) == 9_000_000


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("text")
    (tmp_path / "Makefile").write_text("all:\n\techo\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(TABLES["jsonl"]))
    (tmp_path / "c.txt.zst").write_bytes(zstandard.compress(b"text"))
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    for folder in (".git", "node_modules", "__pycache__", "sub/deep"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.txt").write_text("text")
    (tmp_path / ".hidden").write_text("text")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "nowhere")
    ledger = Ledger()
    files = find_files([str(tmp_path)], tmp_path / "work", ledger)
    assert [(f.name, f.reader) for f in files] == [
        ("Makefile", "code"),
        ("a.md", "markdown"),
        ("b.jsonl.gz", "jsonl"),
        ("c.txt.zst", "text"),
        ("sub/deep/x.txt", "text"),
    ]
    assert {reason: entry["count"] for reason, entry in ledger.skipped.items()} == {
        "hidden or version control": 2,
        "installed packages or caches": 2,
        "binary data": 1,
        "not a regular file": 2,
        "a link to a folder": 1,
    }
    with files[2].open() as f:
        assert f.read() == TABLES["jsonl"]
    with files[3].open() as f:
        assert f.read() == b"text"


def test_the_standard_library_is_there_without_its_tests(tmp_path: Path) -> None:
    names = {f.name for f in find_files(["stdlib"], tmp_path, Ledger())}
    assert {"argparse.py", "json/decoder.py", "venv/__init__.py"} <= names
    assert not any(n.startswith(("test/", "site-packages/")) or not n.endswith(".py") for n in names)


def test_a_file_given_twice_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert len(find_files([str(tmp_path), str(tmp_path / "a.txt")], tmp_path / "work", Ledger())) == 1


def test_one_endless_line_streams(tmp_path: Path) -> None:
    block = " ".join(f"word{i}" for i in range(120_000)).encode() + b" "
    with (tmp_path / "line.txt").open("wb") as f:
        for _ in range(200):
            f.write(block)
    size = (tmp_path / "line.txt").stat().st_size
    code = (
        "import resource, sys\n"
        "from settle.documents.readers.text.text import PlainText\n"
        "from settle.documents.readers.tables.jsonl import Jsonl\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "rows = list(len(r['text']) for r in PlainText().rows(open(sys.argv[1], 'rb')))\n"
        "problems = [r['problem'] for r in Jsonl().rows(open(sys.argv[1], 'rb'))]\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "print(sum(rows), max(rows), problems, grown * (1 if sys.platform == 'darwin' else 1024))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "line.txt")], capture_output=True, text=True, check=True
    )
    total, longest, rest = done.stdout.split(" ", 2)
    problems, grown = rest.rsplit(" ", 1)
    assert (int(total), problems) == (size, "['a line too long to be a record']")
    assert int(longest) <= MAX_DOCUMENT
    assert int(grown) < 150e6 < size
