"""An index follows its folders, whatever happens to them or to it."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from settle.base.errors import DataError, ResourceError, RunError
from settle.base.event_log import Events
from settle.base.registry import part
from settle.retrieve.index import changes
from settle.retrieve.index import words as word_rules
from settle.retrieve.index.chunkers.structure import Structure
from settle.retrieve.index.collection import (
    Collection,
    IndexParts,
    collection_names,
    create,
    delete,
    exclusive,
    rebuilt,
)
from settle.retrieve.index.stores.lancedb import Lancedb
from settle.retrieve.index.update_index import update
from settle.retrieve.search import search
from tests.retrieve import asked

ROOT = Path(__file__).parents[2]
TEXTS = {
    "keys.md": "# Keys\n\nTo rotate the key, run the rotation job and restart the gateway.\n",
    "food.md": "# Lunch\n\nThe kitchen opens at noon and serves soup with bread.\n",
    "sub/notes.txt": "The lighthouse keeper wrote every storm into a green notebook.\n",
}


def parts():
    return IndexParts(part("retrieve/index/embedders", "hashed")(), Lancedb(), Structure())


@pytest.fixture
def collection(home, folder):
    """A collection of three documents, all indexed."""
    for name, text in TEXTS.items():
        write(folder / name, text)
    with create("docs") as made:
        made.decide(parts())
        made.follow([folder])
        report = update(made, Events())
        assert (report.added, report.documents, report.failed) == (3, 3, [])
        yield made


def write(path, text, ago=100.0):
    """A file that was written some seconds ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - ago,) * 2)


def did(collection, **expected):
    """Updates it; what differs from nothing happening is as expected, and it holds what a fresh one would hold."""
    report = update(collection, Events())
    kinds = ("added", "changed", "moved", "deleted", "embedded")
    assert {kind: n for kind in kinds if (n := getattr(report, kind))} == expected
    assert_whole(collection)
    return report


def assert_whole(collection):
    """The catalogue and the store agree with one another and with the files."""
    catalogue = collection.catalogue
    passages = catalogue.passages.page(limit=10**6)
    ids = [p.id for p in passages]
    assert catalogue.ids.loose() == []
    vectors = catalogue.passages.vectors(ids)
    assert len(collection.vectors.store) == len(ids) and set(vectors) == set(ids)
    for passage in passages:
        made = collection.vectors.vectorizer.documents([passage.embedded])[0]
        assert np.allclose(vectors[passage.id], made, atol=1e-3)
        assert passage.id in collection.vectors.nearest(made, 1000)()
    assert catalogue.counts() == {
        table: catalogue.database.rows(f"SELECT count(*) FROM {table}{where}")[0][0]
        for table, where in (("documents", " WHERE error = ''"), ("chunks", ""), ("passages", ""))
    }
    assert set(catalogue.passages.occurrences(ids)) == set(ids)
    for passage in passages:
        assert passage.id in dict(catalogue.words.search(word_rules.words(passage.embedded), 1000)), passage
    for table in ("words", "titles"):
        catalogue.database._connection.execute(f"INSERT INTO {table} ({table}) VALUES ('integrity-check')")


def contents(collection):
    """What is indexed, without the numbers it goes by."""
    catalogue = collection.catalogue
    passages = {p.id: p for p in catalogue.passages.page(limit=10**6)}
    found = []
    for id, at in catalogue.passages.occurrences(list(passages)).items():
        found += [(s.path, s.ordinal, s.place, passages[id].embedded) for s in at]
    documents = [(k.path, k.sha256, k.title, k.error) for k in catalogue.documents.all()]
    return sorted(found, key=lambda one: one[:2]), documents


def found(collection, question):
    return search(collection, question)[0].citation


def test_what_was_indexed_is_found(collection, folder):
    assert found(collection, "how do I rotate the key?") == f"{folder / 'keys.md'}:3"
    did(collection)


def test_a_changed_document(collection, folder):
    write(folder / "food.md", "# Lunch\n\nThe kitchen is closed.\n", ago=50)
    did(collection, changed=1, embedded=1)
    assert all("soup" not in hit.passage.text for hit in search(collection, "soup with bread"))
    assert "closed" in search(collection, "is the kitchen closed?")[0].passage.text


def test_a_touched_document_is_not_read_again(collection, folder):
    os.utime(folder / "food.md")
    assert did(collection).unchanged == 3
    assert did(collection).unchanged == 3


def test_a_document_written_a_moment_ago_is_looked_at_again(collection, folder):
    """Two changes of the same size within one tick of the file system's clock show the same time."""
    now = time.time_ns()
    (folder / "food.md").write_text("# Lunch\n\nWrong\n")
    os.utime(folder / "food.md", ns=(now, now))
    did(collection, changed=1, embedded=1)
    (folder / "food.md").write_text("# Lunch\n\nRight\n")
    os.utime(folder / "food.md", ns=(now, now))
    did(collection, changed=1, embedded=1)


def test_moved_and_renamed(collection, folder):
    (folder / "keys.md").rename(folder / "secrets.md")
    (folder / "sub").rename(folder / "other")
    did(collection, moved=2)
    assert found(collection, "rotate the key") == f"{folder / 'secrets.md'}:3"
    assert found(collection, "green notebook of the lighthouse keeper") == f"{folder / 'other/notes.txt'}:1"
    titles = {k.path: k.title for k in collection.catalogue.documents.all()}
    assert titles[str(folder / "other/notes.txt")] == "notes.txt" and titles[str(folder / "secrets.md")] == "Keys"


def test_files_that_trade_names(collection, folder):
    (folder / "keys.md").rename(folder / "x.md")
    (folder / "food.md").rename(folder / "keys.md")
    (folder / "x.md").rename(folder / "food.md")
    did(collection, changed=2)
    assert found(collection, "rotate the key") == f"{folder / 'food.md'}:3"


def test_another_suffix_is_another_reader(collection, folder):
    (folder / "food.md").rename(folder / "food.txt")
    did(collection, added=1, deleted=1, embedded=1)
    assert search(collection, "kitchen at noon")[0].passage.headings == ()


def test_duplicates_come_and_go(collection, folder):
    for name in ("a.md", "b.md"):
        write(folder / name, TEXTS["keys.md"])
    did(collection, added=2)
    (folder / "keys.md").unlink()
    (folder / "a.md").rename(folder / "c.md")
    did(collection, moved=1, deleted=1)
    places = [s.path for s in search(collection, "rotate the key")[0].occurrences]
    assert places == [str(folder / "b.md"), str(folder / "c.md")]


def test_a_folder_of_duplicates_is_moved_whole(collection, folder):
    for name in ("one/LICENSE.txt", "two/LICENSE.txt"):
        write(folder / name, "Everyone may use this.")
    did(collection, added=2, embedded=1)
    (folder / "one").rename(folder / "three")
    (folder / "two").rename(folder / "four")
    did(collection, moved=2)


def test_a_deleted_document(collection, folder):
    (folder / "food.md").unlink()
    did(collection, deleted=1)


def test_one_that_breaks_and_is_mended(collection, folder):
    good = (folder / "food.md").read_bytes()
    (folder / "food.md").write_bytes(b"\0" * 100)
    report = did(collection, changed=1)
    assert report.failed == [(str(folder / "food.md"), "not text: it has zero bytes")]
    assert did(collection).failed == report.failed  # told as long as it is so
    (folder / "food.md").write_bytes(good)
    assert did(collection, changed=1, embedded=1).failed == []


def test_one_that_cannot_be_opened_stays_as_it_was(collection, folder, monkeypatch):
    file = folder / "food.md"
    file.write_text(file.read_text() + "\n")

    def failing(path):  # as on a failing disk
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(changes, "_check_readable", failing)
    monkeypatch.setattr(changes, "sha256_of", failing)
    report = update(collection, Events())
    assert report.failed == [(str(file), "cannot be read: Input/output error")] and report.unchanged == 3
    assert found(collection, "when does the kitchen open?") == f"{file}:3"


@pytest.mark.skipif(os.geteuid() == 0, reason="everything is open to root")
def test_what_lies_in_a_shut_folder_stays_as_it_was(collection, folder):
    (folder / "sub").chmod(0)
    try:
        report = did(collection)
    finally:
        (folder / "sub").chmod(0o755)
    assert [path for path, _ in report.failed] == [str(folder / "sub/notes.txt")]


@pytest.mark.parametrize("empty", [False, True], ids=["gone", "empty"])
def test_a_root_that_is_not_there_loses_nothing(collection, folder, empty):
    """A disk that is not mounted leaves nothing, or an empty folder."""
    away = folder.with_name("away")
    folder.rename(away)
    if empty:
        folder.mkdir()
    report = did(collection)
    assert report.kept == [(str(folder), "it is empty" if empty else "it is not there")] and report.documents == 3
    if empty:
        folder.rmdir()
    away.rename(folder)
    assert did(collection).kept == []


def test_roots_come_and_go(collection, folder, tmp_path):
    more = tmp_path / "more"
    write(more / "moon.md", "The moon is far.")
    collection.follow([folder, more, folder / "sub", more])
    did(collection, added=1, embedded=1)
    collection.follow([more, folder / "sub"])  # a root inside another one keeps what is its own
    did(collection, deleted=2)
    shutil.rmtree(more)
    collection.follow([folder / "sub"])
    did(collection, deleted=1)


def test_a_file_that_grows_while_it_is_read(collection, folder):
    file = folder / "log.txt"
    write(file, "first line\n" * 3_000)
    stop = threading.Event()

    def grow():
        with file.open("a") as f:
            while not stop.is_set():
                f.write("another line\n")
                f.flush()
                time.sleep(0.002)

    growing = threading.Thread(target=grow)
    growing.start()
    try:
        update(collection, Events())
    finally:
        stop.set()
        growing.join()
    os.utime(file, (time.time() - 50,) * 2)
    report = update(collection, Events())
    assert report.changed == 1
    assert_whole(collection)
    assert contents(collection) == fresh(collection, folder)


def test_what_goes_back_to_what_it_was_while_it_is_read(collection, folder, monkeypatch):
    """As when someone switches branches to and fro: the text of one must not stay under the hash of the other."""
    from settle.retrieve.index import update_index

    file, other = folder / "food.md", "# Lunch\n\nThe oven is broken.\n"
    write(file, TEXTS["food.md"] + "More.\n", ago=70)
    real = update_index.read_all

    def while_reading(paths, **options):
        write(file, other, ago=60)
        yield from real(paths, **options)

    monkeypatch.setattr(update_index, "read_all", while_reading)
    update(collection, Events())
    monkeypatch.setattr(update_index, "read_all", real)
    write(file, TEXTS["food.md"] + "More.\n", ago=50)
    update(collection, Events())
    assert "More." in search(collection, "kitchen lunch")[0].passage.text
    assert contents(collection) == fresh(collection, folder)


def test_names_that_are_no_text(collection, folder):
    inside = folder / os.fsdecode(b"caf\xe9")
    inside.mkdir()
    (inside / os.fsdecode(b"\xff.txt")).write_text("The frost guard is a lever.")
    did(collection, added=1, embedded=1)
    assert search(collection, "frost guard")[0].occurrences[0].path == f"{folder}/caf\\xe9/\\xff.txt"
    did(collection)
    shutil.rmtree(inside)
    did(collection, deleted=1)


def fresh(collection, folder):
    """What an index made from nothing holds."""
    with create("fresh") as made:
        made.decide(parts())
        made.follow(collection.roots)
        update(made, Events())
        found = contents(made)
    delete("fresh")
    return found


def test_anew_takes_the_place_when_it_is_complete(collection, folder):
    before = contents(collection)
    shorter = parts()._replace(chunker=Structure(tokens=20))
    with pytest.raises(KeyboardInterrupt), rebuilt(collection, shorter) as new:
        update(new, Events())
        begun = new.folder
        raise KeyboardInterrupt
    with Collection("docs") as old:
        assert contents(old) == before and not old.is_replaced
    with rebuilt(collection, shorter) as new:
        assert new.folder == begun
        report = update(new, Events())
        assert (report.unchanged, report.embedded) == (3, 0)  # gone on with
        assert not collection.is_replaced and contents(collection) == before
    assert collection.is_replaced and not collection.folder.exists()
    with Collection("docs") as now:
        assert now.config.chunker["tokens"] == 20 and now.roots == [folder]
        did(now)


def test_anew_with_other_parts_begins_again(collection):
    with pytest.raises(KeyboardInterrupt), rebuilt(collection, parts()._replace(chunker=Structure(tokens=20))) as new:
        update(new, Events())
        raise KeyboardInterrupt
    with rebuilt(collection, parts()) as new:
        assert update(new, Events()).added == 3


def test_one_at_a_time(collection):
    with exclusive(collection.name), Collection("docs") as other, pytest.raises(RunError, match="another settle"):
        update(other, Events())


def test_vectors_that_were_lost_are_made_again(collection, folder):
    """As after a power cut, which a store may have answered too early."""
    collection.vectors.store.remove([p.id for p in collection.catalogue.passages.page()][:2])
    write(folder / "new.md", "# New\n\nA new one.\n")
    did(collection, added=1, embedded=1)


def test_a_store_that_cannot_be_read_is_made_again(collection, folder, monkeypatch):
    damaged, count = collection.vectors.store, type(collection.vectors.store).__len__

    def counted(self):
        if self is damaged:
            raise DataError("it ends in the middle of a graph", "index anew")
        return count(self)

    monkeypatch.setattr(type(damaged), "__len__", counted)
    write(folder / "new.md", "# New\n\nA new one.\n")
    did(collection, added=1, embedded=1)


def test_a_store_that_breaks_at_the_very_end_is_looked_at_by_the_next_run(collection, folder, monkeypatch):
    """All is committed by then: nothing is new, and nothing loose."""

    def breaks(self):
        self.remove(before)
        raise ResourceError("the disk is full", "make room")

    before = [p.id for p in collection.catalogue.passages.page()]
    write(folder / "new.md", "# New\n\nA new one.\n")
    with monkeypatch.context() as patched:
        patched.setattr(type(collection.vectors.store), "compact", breaks)
        with pytest.raises(ResourceError):
            update(collection, Events())
    did(collection)


def test_words_by_other_rules_are_made_again(collection, monkeypatch):
    monkeypatch.setattr(word_rules, "words", lambda text: [w[:3] for w in text.lower().split()])
    monkeypatch.setattr(word_rules, "VERSION", "other")
    with Collection("docs") as now:
        assert_whole(now)
        assert now.catalogue.words.frequencies(["kit", "kitchen"]) == {"kit": 1}


def test_a_full_disk_is_said_and_loses_nothing(collection, folder):
    """SQLite is told that the disk has no more pages, at ever later points."""
    before = contents(collection)
    for number in range(40):
        write(folder / f"{number}.md", f"# {number}\n\n" + f"word{number} " * 400)
    database = collection.catalogue.database._connection
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    refused = 0
    for room in range(0, 400, 8):
        database.execute(f"PRAGMA max_page_count = {pages + room}")
        try:
            update(collection, Events())
            break
        except ResourceError as e:
            refused += 1
            assert "full" in e.what and "make room" in e.fix
            documents = {path for path, *_ in contents(collection)[1]}
            assert documents >= {path for path, *_ in before[1]}
            (now,) = database.execute("PRAGMA page_count").fetchone()
            pages = max(pages, now - room)
    assert refused
    assert_whole(collection)
    assert contents(collection) == fresh(collection, folder)


def test_a_damaged_catalogue_is_said(collection, home):
    path = collection.folder / "catalogue.sqlite"
    collection.close()
    path.write_bytes(b"this is no database" * 1000)
    with pytest.raises(DataError, match="damaged, or is no catalogue"):
        Collection("docs")
    delete("docs")
    assert collection_names() == []


def test_a_query_sees_the_last_complete_state(collection, folder):
    """While documents change to and fro, each is found in one of its states at every moment."""
    states = [[f"# D{d}\n\nthe word of {d} is state{s}\n" for d in range(8)] for s in (0, 1)]

    def put(state, ago):
        for d, text in enumerate(states[state]):
            write(folder / f"d{d}.md", text, ago)

    put(0, 90)
    update(collection, Events())
    stop, wrong, asked = threading.Event(), [], [0]

    def ask():
        with Collection("docs") as reader:
            while not stop.is_set():
                for d in range(8):
                    asked[0] += 1
                    hits = search(reader, f"what is the word of {d}", 25)
                    own = [h for h in hits for s in h.occurrences if s.path.endswith(f"/d{d}.md")]
                    if len(own) != 1 or own[0].similarity is None:
                        wrong.append((d, own))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for turn in range(6):
            put(1 - turn % 2, 80 - turn)
            update(collection, Events())
    finally:
        stop.set()
        asking.join()
    assert not wrong and asked[0] > 20


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_runs_out_is_said_in_words(home, folder, monkeypatch, error):
    def documents(self, texts):
        raise error

    monkeypatch.setattr("tests.retrieve.hashed._Hashing.documents", documents)
    with pytest.raises(ResourceError, match="out of memory while passages were embedded"):
        asked.index("docs", folder, {"a.md": "Some words of a document."})


@pytest.mark.slow
def test_an_index_that_is_killed_is_never_wrong_and_ends_as_a_fresh_one():
    """A small part of what bench/reindex.py does to an index: killed at random moments."""
    command = [sys.executable, str(ROOT / "bench" / "reindex.py"), "kill", "--moments", "1", "--stores", "lancedb"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"rows": [["lancedb", 1, 1]], "failures": []}
