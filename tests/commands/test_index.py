"""`settle index`: what a person types, sees and can rely on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from settle.cli import main
from settle.retrieve.index.collection import Collection, collection_names
from settle.retrieve.search import search
from tests.retrieve.conftest import joined  # noqa: F401  `hashed` is an embedder

SETTLE = [sys.executable, "-m", "settle"]
HASHED = ["--embedder", "hashed"]


@pytest.fixture
def notes(home, tmp_path, monkeypatch):
    """A folder of two documents, called notes, in the folder that one stands in."""
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "keys.md").write_text("# Keys\n\nTo rotate the key, run the rotation job.\n")
    (folder / "food.txt").write_text("The kitchen opens at noon.\n")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def index(capfd):
    """`settle index …`: the result, and what was said."""

    def run(*arguments, code=0):
        assert main(["index", *map(str, arguments), "--json"]) == code
        out, err = capfd.readouterr()
        return json.loads(out.splitlines()[-1]) if out else None, err

    return run


def test_once_and_again(notes, index):
    result, said = index("notes", *HASHED)
    assert (result["name"], result["added"], result["documents"], result["passages"]) == ("notes", 2, 2, 2)
    assert "notes: 2 added; 2 documents, 2 passages" in said
    assert said.index("the hashes are ready") < said.index("2 added")
    (notes / "moon.md").write_text("The moon is far.")
    result, said = index("notes")
    assert (result["added"], result["unchanged"], result["embedded"]) == (1, 2, 1)
    assert "notes is taken for the collection of that name; the folder is ./notes" in said
    result, said = index(notes / "..", "--name", "notes", code=0)
    assert result["added"] == 0 and result["unchanged"] == 3  # a root that holds another
    with Collection("notes") as collection:
        assert collection.roots == [notes, notes.parent]


def test_a_folder_is_known_again_and_a_name_is_made(notes, index, tmp_path):
    assert index("./notes", *HASHED)[0]["name"] == "notes"
    assert index("./notes/", "./notes", *HASHED)[0]["unchanged"] == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes").mkdir()
    (tmp_path / "other" / "notes" / "a.txt").write_text("Another.")
    assert index("other/notes", *HASHED)[0]["name"] == "notes-2"
    assert index("notes/food.txt", *HASHED)[0]["name"] == "food"
    assert collection_names() == ["food", "notes", "notes-2"]


def test_the_list(notes, index, capfd):
    assert index()[0] == {"collections": []}
    index("notes", *HASHED)
    (told,) = index()[0]["collections"]
    assert told["name"] == "notes" and told["documents"] == 2 and told["roots"] == [str(notes)]
    assert told["bytes"] > 10_000 and 0 <= told["age"] < 60 and told["embedder"] == "hashed"
    assert main(["index"]) == 0
    assert "notes  2          2         " in capfd.readouterr().out


def test_what_cannot_be_read_is_told(notes, capfd):
    (notes / "broken.txt").write_bytes(b"\0" * 9)
    (notes / "empty.md").write_text("")
    (notes / "film.mp4").write_bytes(b"\0")
    assert main(["index", "notes", *HASHED]) == 0
    out, err = capfd.readouterr()
    assert "broken.txt  not text: it has zero bytes" in out and "empty.md    no text in it" in out
    assert "left out: 1 no reader for .mp4" in err and "2 added, 2 could not be read; 2 documents" in err
    assert main(["index", "notes", *HASHED]) == 0
    assert "2 unchanged, 2 could not be read; 2 documents" in capfd.readouterr().err


def test_where_json_is_broken_is_told(notes, index, capfd):
    (notes / "a.json").write_text('[\n{"q": 1},\n{"q": 2 "a": 3},\n{"q": 4}\n]\n')
    (notes / "b.jsonl").write_text('{"q": 1}\n{"q": 2\n\n{"q": 3}\n')
    assert main(["index", "notes", *HASHED]) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert "a.json no valid JSON in line 3 (expecting ',' delimiter, column 9): read as text" in out
    assert "b.jsonl no valid JSON in line 2 (expecting ',' delimiter, column 8)" in out
    assert index("notes", *HASHED)[0]["partly"] == []


def test_what_is_no_text_for_people_is_left_out_and_listed(notes, index, capfd):
    (notes / "basic.css").write_text("a { color: red }")
    (notes / "faq.pdf.gz").write_bytes(b"\x1f\x8b")
    assert main(["index", "notes", *HASHED]) == 0
    err = capfd.readouterr().err
    assert "left out: 1 archives: not opened (faq.pdf.gz), 1 a stylesheet (basic.css)\n" in err
    assert "2 added; 2 documents" in err and "could not be read" not in err
    assert main(["index", "notes", "--status"]) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert "basic.css left out: a stylesheet" in out
    assert index("notes", *HASHED)[0]["left_out"] == {"archives: not opened": 1, "a stylesheet": 1}


def test_an_empty_name_or_path_is_refused(notes, capfd, monkeypatch):
    """As an unset variable of a shell leaves it: it is not the current folder."""
    monkeypatch.chdir(notes)
    for arguments in ([""], ["", "--name", "x"], [str(notes), "--name", ""], ["--name", "", "."]):
        assert main(["index", *arguments, *HASHED]) == 2
        assert "a name or path is empty\n  → perhaps a variable is not set" in capfd.readouterr().err
    assert collection_names() == []
    assert main(["ask", "", "what?"]) == 2 and "there is no collection ''" in capfd.readouterr().err


def test_a_file_that_was_named_and_cannot_be_read_is_an_error(notes, capfd):
    (notes / "broken.txt").write_bytes(b"\0" * 9)
    (notes / "torn.pdf").write_bytes(b"%PDF-1.4 torn")
    for name in ("broken.txt", "torn.pdf"):
        assert main(["index", f"notes/{name}", *HASHED]) == 1
        assert "no document there could be read" in capfd.readouterr().err and collection_names() == []
    assert main(["index", "notes/broken.txt", "notes/food.txt", "--name", "some", *HASHED]) == 1
    err = capfd.readouterr().err
    assert "1 added, 1 could not be read; 1 document, 1 passage\n" in err
    assert f"{notes / 'broken.txt'} could not be read: not text: it has zero bytes\n  → the rest is indexed" in err
    assert collection_names() == ["some"]


def test_nothing_to_index_leaves_nothing(notes, index, tmp_path, capfd):
    (tmp_path / "void").mkdir()
    (tmp_path / "void" / "film.mp4").write_bytes(b"\0")
    assert main(["index", "void", *HASHED]) == 1
    assert capfd.readouterr().err.endswith("settle: there is no document there\n  → 1 no reader for .mp4 (film.mp4)\n")
    assert main(["index", "void/film.mp4", *HASHED]) == 2
    assert main(["index", "nowhere"]) == 2
    assert main(["index", "--name", "docs"]) == 2
    assert main(["index", "notes", "--name", "a/b", *HASHED]) == 2
    assert main(["index", "notes", "--name", "docs", "--embedder", "no"]) == 2
    assert main(["index", "notes", "--name", "docs", *HASHED, "--chunker.token", "9"]) == 2
    assert collection_names() == [] and not list((tmp_path / "home" / "collections").glob("*/*"))


def test_parts_are_kept_and_not_mixed(notes, index, capfd):
    index("notes", *HASHED, "--embedder.width", "32", "--chunker.tokens", "50")
    assert index("notes", "--embedder.width", "32")[0]["unchanged"] == 2
    assert main(["index", "notes", "--embedder.width", "16"]) == 2
    assert "notes is made with hashed (width 32" in capfd.readouterr().err
    result, _ = index("notes", "--anew", "--embedder.width", "16")
    assert result["added"] == 2
    with Collection("notes") as collection:
        assert collection.config.width == 16 and collection.config.chunker["tokens"] == 50


def test_roots_are_let_go_only_when_told(notes, index, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "moon.md").write_text("The moon is far.")
    assert index("notes", "more", *HASHED)[0]["documents"] == 3
    notes.rename(tmp_path / "away")
    result, said = index("--name", "notes")
    assert result["documents"] == 3 and result["kept"] == [{"root": str(notes), "why": "it is not there"}]
    assert f"`settle index notes --without {notes}` lets them go" in said
    assert main(["index", "notes", "--anew"]) == 1  # which would lose them
    assert index("notes", "--without", "notes")[0]["deleted"] == 2
    assert main(["index", "notes", "--without", "notes"]) == 2
    assert main(["index", "notes", "--without", "more"]) == 2  # then nothing is left
    assert index("notes", "--delete")[0] == {"deleted": "notes"} and collection_names() == []
    assert (tmp_path / "more" / "moon.md").exists()


def begun(*arguments):
    return subprocess.Popen([*SETTLE, "index", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


def test_stopped_in_the_middle(notes, index):
    for number in range(20):
        (notes / f"{number}.md").write_text("\n\n".join(f"# Part {p}\n\nWord{number} of {p}." for p in range(60)))
    process = begun("notes", *HASHED, "--embedder.pause", "0.001")
    until(lambda: "notes" in collection_names() and documents("notes") > 5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "Traceback" not in err
    assert "stopped; what was indexed is kept" in err
    kept = documents("notes")
    assert 5 < kept < 22
    result, _ = index("notes")
    assert result["unchanged"] == kept and result["documents"] == 22


def documents(name):
    with Collection(name) as collection:
        return collection.catalogue.counts()["documents"]


def test_watching(notes, tmp_path):
    index = tmp_path / "more.txt"
    index.write_text("One.")
    process = begun("notes", "more.txt", *HASHED, "--watch")
    os.set_blocking(process.stderr.fileno(), False)
    until(lambda: "notes" in collection_names() and documents("notes") == 3)
    (notes / "new.md").write_text("# Moon\n\nThe moon is far.\n")
    until(lambda: documents("notes") == 4)
    (notes / "new.md").rename(notes / "old.md")
    (notes / ".hidden.md").write_text("Nobody sees this.")
    index.write_text("Two words.")
    notes_at = lambda: {k.path for k in known("notes")}  # noqa: E731
    until(lambda: str(notes / "old.md") in notes_at() and "Two" in text("notes", "two words"))
    notes.rename(tmp_path / "away")  # the disk goes, and comes back with one more
    (tmp_path / "away" / "late.txt").write_text("Late.")
    time.sleep(2.2)
    assert documents("notes") == 4
    (tmp_path / "away").rename(notes)
    until(lambda: documents("notes") == 5)
    process.terminate()
    process.wait(timeout=60)
    said = process.stderr.read()
    process.stdout.close()
    process.stderr.close()
    assert process.returncode == 130 and "Traceback" not in said and "stopped; what was indexed is kept" in said


def known(name):
    with Collection(name) as collection:
        return list(collection.catalogue.documents.all())


def text(name, question):
    with Collection(name) as collection:
        return search(collection, question)[0].passage.text


def test_a_run_without_changes_loads_nothing_heavy(notes, index):
    index("notes", *HASHED)
    code = (
        "import sys; from settle.cli import main; main(['index', 'notes']); "
        "print([m for m in ('torch', 'lancedb', 'pyarrow', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]" and "2 unchanged" in done.stderr


def test_a_check_tells_figures_and_keeps_a_picture(notes, index, capfd):
    result, said = index("notes", *HASHED, "--check", "--questions", 5)
    assert 0 < result["questions"] <= 5
    assert set(result["recall"]) == {str(k) for k in range(1, 11)}
    assert result["false_refusals"]["low"] <= result["false_refusals"]["value"] <= result["false_refusals"]["high"]
    assert Path(result["picture"]).read_bytes()[:4] == b"\x89PNG"
    assert "2 added" in said
    assert main(["index", "notes", "--check"]) == 0
    assert "right passage among the first 5" in capfd.readouterr().out


def test_how_to_check_is_said_with_check_only(notes, index):
    _, said = index("notes", *HASHED, "--questions", 5, code=2)
    assert "--check" in said
    _, said = index("notes", *HASHED, "--check", "--model", "nobody", code=2)
    assert "nobody" in said
    assert collection_names() == []


def test_the_status_says_what_changed_and_changes_nothing(notes, index, capfd):
    (notes / "broken.pdf").write_text("no PDF")
    index("notes", *HASHED)
    (notes / "moon.md").write_text("The moon is far.")
    (notes / "keys.md").write_text("# Keys\n\nThere are none any more, and no job.\n")
    (notes / "food.txt").unlink()
    for arguments in (["--status"], ["notes", "--status"], ["--status", "--name", "notes"]):
        (status,) = index(*arguments)[0]["collections"]
        assert (status["new"], status["changed"], status["gone"], status["documents"]) == (1, 1, 1, 2)
        assert [fault["path"] for fault in status["failed"]] == [str(notes / "broken.pdf")] and not status["unseen"]
    assert main(["index", "notes", "--status"]) == 0
    assert str(notes / "broken.pdf") in capfd.readouterr().out
    notes.rename(notes.with_name("away"))
    (status,) = index("--status")[0]["collections"]
    assert (status["gone"], status["unseen"]) == (0, [{"path": str(notes), "why": "it is not there"}])
    assert main(["index", "nobody", "--status"]) == 2 and "there are: notes" in capfd.readouterr().err
    assert main(["index", "notes", "--status", "--anew"]) == 2 and "--anew" in capfd.readouterr().err
