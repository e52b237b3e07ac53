"""Parts of an index that need no documents: what counts as gone, who follows changes, what an error of SQLite means."""

import errno
import os
import sqlite3
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from settle.base.errors import DataError, ResourceError, RunError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady, Warn
from settle.documents.walk import FoundFile
from settle.retrieve.check import check as check_module
from settle.retrieve.check.phrases import of_function
from settle.retrieve.index import changes as changes_module
from settle.retrieve.index import update_index as watch_module
from settle.retrieve.index.catalogue import DocumentRecord
from settle.retrieve.index.changes import UNSURE, Changes, _is_below, _moved, _out_of_reach, _sort_missing, unseen
from settle.retrieve.index.database import _translate
from settle.retrieve.index.list_collections import list_collections


def test_a_path_is_below_a_folder_and_not_beside_it():
    assert _is_below("/a/b", [Path("/a")]) and _is_below("/a", [Path("/a")]) and _is_below("/x", [Path("/")])
    assert not _is_below("/ab", [Path("/a")]) and not _is_below("/a", [Path("/a/b")]) and not _is_below("/a", [])


def test_a_time_that_may_repeat_is_not_trusted():
    changes, tick = Changes(began=10**18), 2_000_000_000
    stamps = [changes.stamp(FoundFile("p", "r", 1, 10**18 + at, "text")) for at in (-tick, 1 - tick, 0, tick - 1, tick)]
    assert stamps == [10**18 - tick, UNSURE, UNSURE, UNSURE, 10**18 + tick]


def test_documents_without_a_heading_are_titled_by_their_files():
    old, now = DocumentRecord("/a/x.txt", 1, 2, b"h", "x.txt"), DocumentRecord("/b/y.txt", 1, 3, b"h")
    assert _moved(old, now) == ("/a/x.txt", DocumentRecord("/b/y.txt", 1, 3, b"h", "y.txt"))
    assert _moved(DocumentRecord("/a/x.txt", 1, 2, b"h", "A title"), now)[1].title == "A title"


def test_what_cannot_be_seen_is_not_gone(tmp_path, monkeypatch):
    full, empty, gone = tmp_path / "full", tmp_path / "empty", tmp_path / "gone"
    for folder in (full, empty):
        folder.mkdir()
    (full / "a.txt").write_text("x")
    roots, known = [full, empty, gone], [str(empty / "was.txt"), str(gone / "was.txt"), str(full / "was.txt")]
    assert unseen(roots, known) == {empty: "it is empty", gone: "it is not there"}
    assert unseen([empty], [str(full / "was.txt")]) == {}, "nothing was ever in it"
    assert unseen([full / "a.txt"], []) == {}
    changes = Changes(0)
    monkeypatch.setattr(changes_module, "_out_of_reach", lambda path: "shut" if path.name == "shut.txt" else "")
    missing = [*known, str(full / "shut.txt"), "/elsewhere/x.txt"]
    _sort_missing(missing, roots, [empty, gone], changes)
    assert changes.gone == [str(full / "was.txt"), "/elsewhere/x.txt"] and changes.unchanged == 3
    assert changes.failed == [(str(full / "shut.txt"), "shut")]


def test_a_file_may_be_out_of_reach(tmp_path, monkeypatch):
    assert _out_of_reach(tmp_path / "none.txt") == ""
    (tmp_path / "a.txt").write_text("x")
    assert _out_of_reach(tmp_path / "a.txt") == ""
    monkeypatch.setattr(os, "access", lambda folder, mode: Path(folder) != tmp_path)
    assert _out_of_reach(tmp_path / "a.txt") == f"the folder {tmp_path} cannot be opened"

    def refuse(self):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    assert _out_of_reach(tmp_path / "a.txt") == "cannot be examined: Permission denied"


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (sqlite3.SQLITE_FULL, ResourceError, "the disk is full"),
        (sqlite3.SQLITE_IOERR | 3 << 8, ResourceError, "cannot be read or written"),
        (sqlite3.SQLITE_READONLY, ResourceError, "cannot write"),
        (sqlite3.SQLITE_CANTOPEN, ResourceError, "cannot write"),
        (sqlite3.SQLITE_BUSY, RunError, "another process has locked"),
        (sqlite3.SQLITE_CORRUPT, DataError, "is damaged"),
        (None, DataError, "is damaged"),
    ],
)
def test_errors_of_sqlite_are_settle_s(code, kind, says):
    error = sqlite3.OperationalError("why")
    if code is not None:
        error.sqlite_errorcode = code
    translated = _translate(error, Path("c.sqlite"))
    assert type(translated) is kind and says in translated.what


class Stop(Exception):
    """Ends a watch that would go on for ever."""


def test_changes_are_indexed_and_an_error_is_said_once_and_tried_again(tmp_path, monkeypatch):
    collection = SimpleNamespace(roots=[tmp_path, tmp_path / "none"])
    outcomes = iter(["first", RunError("locked", "wait"), RunError("locked", "wait"), RunError("full", "x"), "second"])
    watched, reports, seen, asked = [], [], [], []

    def update(collection, events):
        asked.append(1)
        outcome = next(outcomes)
        if isinstance(outcome, RunError):
            raise outcome
        return outcome

    def changed(folders):
        watched.append(list(folders))
        # nothing, a change, a tick for each further try, and nothing more
        yield from (False, False, True, False, False, False, False)
        raise Stop

    monkeypatch.setattr(watch_module, "update", update)
    monkeypatch.setattr(watch_module, "_changes", changed)
    with pytest.raises(Stop):
        watch_module.follow(collection, Events(listeners=[seen.append]), reports.append)
    assert reports == ["first", "second"] and watched == [[tmp_path]] and len(asked) == 5
    assert [e.text for e in seen if isinstance(e, Warn)] == ["locked; trying again", "full; trying again"]


def test_a_root_that_appears_is_watched_from_then_on(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("x")
    roots, watched = [tmp_path / "later", tmp_path / "a.txt"], []

    def changed(folders):
        watched.append(list(folders))
        if len(watched) == 3:
            raise Stop
        if len(watched) == 1:
            roots[0].mkdir()
        else:
            roots[1].write_text("longer")
        yield False
        pytest.fail("the watch is begun anew")

    monkeypatch.setattr(watch_module, "update", lambda collection, events: "report")
    monkeypatch.setattr(watch_module, "_changes", changed)
    with pytest.raises(Stop):
        watch_module.follow(SimpleNamespace(roots=roots), Events(), lambda report: None)
    assert watched == [[], [roots[0]], [roots[0]]]


def test_without_collections_it_says_how_to_make_one(home):
    seen = []
    list_collections(Events(listeners=[seen.append]))
    assert [e.note for e in seen if isinstance(e, Listing)] == ["no collections yet; make one: `settle index FOLDER`"]
    assert [e.result for e in seen if isinstance(e, ResultReady)] == [{"collections": []}]


@pytest.mark.parametrize(
    ("doc", "begins", "has"),
    [
        ("A list of all open files.", ("which class is a ",), ""),
        ("Returns the largest of two numbers.", ("how do I return", "how to return", "which function can return"), ""),
        ("Process the whole line", ("how do I process", "how to process", "which function can process"), ""),
        ("Pushes one item", ("how do I push ", "how to push ", "which function can push "), "item"),
        ("Passes it on", ("how do I pass ", "how to pass ", "which function can pass "), ""),
    ],
)
def test_code_is_asked_for_by_what_it_does(doc, begins, has):
    asked = {of_function(doc, Random(seed)) for seed in range(40)}
    verbs = tuple(begin.replace("how to", "code to") for begin in begins)
    assert all(question.startswith((*begins, *verbs)) for question in asked) and len(asked) > 1
    assert any(has in question for question in asked)
    assert len(of_function("Make " + "word " * 60, Random(1)).split()) <= 4 + 18


def test_citations_are_right_where_their_passage_holds_the_answer(monkeypatch):
    def trial(number):
        question = SimpleNamespace(text=str(number), answers={number})
        return SimpleNamespace(question=question)

    def cited(*numbers):
        pieces = [SimpleNamespace(passage=SimpleNamespace(id=n)) if n is not None else None for n in numbers]
        return tuple(SimpleNamespace(piece=piece) for piece in pieces)

    asked = []

    def finish(number):
        asked.append(number)
        kind = "quoted" if number == 4 else "written"
        return SimpleNamespace(kind=kind, sentences=cited(number, None, number + 1))

    monkeypatch.setattr(check_module, "ANSWERED", 3)
    monkeypatch.setattr(check_module, "retrieve", lambda collection, text: int(text))
    monkeypatch.setattr(check_module, "stream_answer", lambda collection, model, retrieval: retrieval)
    monkeypatch.setattr(check_module, "finish_answer", finish)
    progress = []
    right = check_module._cited(None, [trial(n) for n in range(6)], None, Events(listeners=[progress.append]))
    # every other question, evenly spread; what is only quoted cites nothing of a model's own
    assert asked == [0, 2, 4] and right == [True, False] * 2
    assert [(e.done, e.total) for e in progress] == [(1, 3), (2, 3), (3, 3)]
