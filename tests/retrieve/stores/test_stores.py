"""The contract of a store, tried on every one that is installed here."""

import gc
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from settle.base.errors import DataError, ResourceError, UsageError
from settle.base.registry import part
from settle.retrieve.index.stores import Store

WIDTH = 24


@pytest.fixture(params=Store.part_names())
def name(request, tmp_path_factory):
    """Every store of the family; one whose library is not installed says so, and is skipped."""
    try:
        open_store(request.param, tmp_path_factory.mktemp("probe")).close()
    except UsageError as e:
        assert "pip install" in e.fix
        pytest.skip(e.what)
    return request.param


@pytest.fixture
def opened(name, tmp_path):
    vectors = open_store(name, tmp_path)
    yield vectors
    vectors.close()


def open_store(name, folder, width=WIDTH):
    return Store.make(name, {}).open(folder, "docs-1234", width)


def some(count, seed=0, width=WIDTH):
    made = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def everything(opened):
    """The ids that are there."""
    return set(opened.near(some(1)[0], 10_000).tolist())


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_nearest(opened):
    vectors, ids = some(500), np.arange(7, 507)
    assert len(opened) == 0 and len(opened.near(vectors[0], 5)) == 0
    for first in range(0, 500, 100):
        opened.add(ids[first : first + 100], vectors[first : first + 100])
    for asked in some(20, seed=1):
        near = opened.near(asked, 10)
        assert near[:10].tolist() == ids[np.argsort(-(vectors @ asked))[:10]].tolist()
    assert near.dtype == np.int64
    assert len(opened.near(vectors[0], 1000)) == len(opened) == 500


def test_an_id_that_is_there_gets_the_new_vector(opened):
    vectors = some(30)
    opened.add(np.arange(20), vectors[:20])
    opened.add(np.arange(10, 30), vectors[10:][::-1])
    assert len(opened) == 30
    assert [opened.near(vectors[at], 1)[0] for at in (5, 24, 10)] == [5, 15, 29]


def test_removed_ones_are_found_no_more(opened):
    vectors = some(300)
    opened.add(np.arange(300), vectors)
    gone = [*range(100), 150, 152, 153, 200, *range(250, 260, 2), 777]
    opened.remove(gone)
    left = sorted(set(range(300)) - set(gone))
    assert len(opened) == len(left) and everything(opened) == set(left)
    opened.remove([])
    opened.add(np.zeros(0, np.int64), np.zeros((0, WIDTH), np.float32))
    opened.compact()
    assert everything(opened) == set(left)


def test_it_is_there_when_it_is_opened_again(name, opened, tmp_path):
    opened.add(np.arange(50), some(50))
    opened.close()
    again = open_store(name, tmp_path)
    assert len(again) == 50 and everything(again) == set(range(50))
    again.add(np.arange(40, 60), some(20, seed=1))
    assert len(again) == 60
    again.drop()
    again.close()
    empty = open_store(name, tmp_path)
    assert len(empty) == 0
    empty.close()


def test_room_is_given_back(name, tmp_path):
    vectors = some(1000)

    def filled(folder, rounds):
        opened = open_store(name, folder)
        for turn in range(rounds):
            ids = np.arange(turn * 1000, (turn + 1) * 1000)
            for first in range(0, 1000, 500):
                opened.add(ids[first : first + 500], vectors[first : first + 500])
            if turn:
                opened.remove((ids - 1000).tolist())
                opened.compact()
        opened.compact()
        opened.close()
        return size(folder)

    once, often = filled(tmp_path / "once", 1), filled(tmp_path / "often", 4)
    assert often <= 1.3 * once


OTHER = """
import sys, numpy as np
from pathlib import Path
from settle.base.registry import part
vectors = part("retrieve/index/stores", sys.argv[1])().open(Path(sys.argv[2]), "docs-1234", int(sys.argv[3]))
random = np.random.default_rng(3)
print("ready", flush=True)
for line in sys.stdin:
    first, count = map(int, line.split())
    made = random.standard_normal((count, int(sys.argv[3]))).astype(np.float32)
    vectors.add(np.arange(first, first + count), made / np.linalg.norm(made, axis=1, keepdims=True))
    print("added", flush=True)
"""


@pytest.fixture
def other(name, tmp_path):
    """Another process with the same store; told what to add by lines."""
    made = [sys.executable, "-c", OTHER, name, str(tmp_path), str(WIDTH)]
    process = subprocess.Popen(made, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_what_another_process_adds_is_found(opened, other):
    opened.add(np.arange(10), some(10))
    other.stdin.write("100 50\n")
    other.stdin.flush()
    assert other.stdout.readline() == "added\n"
    assert len(opened) == 60
    assert everything(opened) == {*range(10), *range(100, 150)}


def test_a_process_that_dies_leaves_it_whole(name, tmp_path, other):
    """What an add has answered for is there, and what was not answered is there or not, but breaks nothing."""
    for turn in range(30):
        other.stdin.write(f"{turn * 100} 100\n")
    other.stdin.flush()
    done = 0
    while done < 5:
        done += other.stdout.readline() == "added\n"
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    done += other.stdout.read().count("added\n")
    opened = open_store(name, tmp_path)
    there = everything(opened)
    assert set(range(done * 100)) <= there and len(opened) == len(there)
    opened.add(np.arange(2500, 3000), some(500))
    opened.compact()
    asked = some(500)[3]
    assert opened.near(asked, 1)[0] == 2503
    opened.close()


@pytest.mark.skipif(not importlib.util.find_spec("chromadb"), reason="chromadb is missing")
def test_a_chroma_server(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("chroma")), "run", "--path", str(tmp_path), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(port)
    opened = part("retrieve/index/stores", "chroma")(url=f"http://127.0.0.1:{port}").open(tmp_path, "docs-1234", WIDTH)
    try:
        opened.add(np.arange(100), some(100))
        opened.remove(range(50))
        opened.compact()
        assert len(opened) == 50 and opened.near(some(100)[70], 1)[0] == 70
        opened.drop()
    finally:
        server.kill()
        server.wait()
    with pytest.raises(DataError, match=f"the store of vectors at http://127.0.0.1:{port} failed"):
        opened.near(some(1)[0], 1)
    opened.close()
    del opened
    with warnings.catch_warnings():  # Chroma's client leaves its connections to the collector
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def wait_for(port, seconds=60):
    """Until something listens there."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_a_store_that_cannot_be_reached_says_so(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match="the store of vectors at .*file failed"):
        part("retrieve/index/stores", "lancedb")(url=str(tmp_path / "file")).open(tmp_path, "docs-1234", WIDTH)


def test_an_index_finds_what_comes_and_goes(tmp_path, monkeypatch):
    """LanceDB beyond the size where all are compared: candidates of one bit a dimension, and what is not in it yet."""
    lancedb = pytest.importorskip("settle.retrieve.index.stores.lancedb")
    monkeypatch.setattr(lancedb, "EXACT", 600 * 128)
    monkeypatch.setattr(lancedb, "_PARTITION_VECTORS", 100)
    random = np.random.default_rng(5)
    vectors = some(50, width=128)[random.integers(0, 50, 3020)] + some(3020, 1, width=128) * 0.7
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)  # topics, as texts have them
    vectors, questions = vectors[:3000], vectors[3000:]
    opened = open_store("lancedb", tmp_path, width=128)

    def check(there):
        """Every one finds itself, and the nearest of others are found."""
        for at in there[:: len(there) // 20]:
            assert at in opened.near(vectors[at], 1)
        best = [set(there[np.argsort(-(vectors[there] @ asked))[:10]]) for asked in questions]
        found = [set(opened.near(asked, 10).tolist()) for asked in questions]
        assert sum(len(b & f) for b, f in zip(best, found, strict=True)) >= 0.99 * 200

    opened.add(np.arange(700), vectors[:700])
    opened.compact()
    assert opened._trained() == 700
    check(np.arange(700))
    for first in range(700, 2000, 100):
        opened.add(np.arange(first, first + 100), vectors[first : first + 100])
    check(np.arange(2000))  # most are not in it
    opened.remove(range(500, 1500))
    opened.compact()
    check(np.r_[0:500, 1500:2000])
    assert opened._trained() == 700
    opened.add(np.arange(500, 3000), vectors[500:])  # some of them again
    opened.compact()
    assert opened._trained() == len(opened) == 3000 and len(opened._table.list_indices()) == 1
    check(np.arange(3000))


@pytest.mark.skipif(not importlib.util.find_spec("chromadb"), reason="chromadb is missing")
def test_a_graph_that_finds_no_room_is_told_as_a_full_disk(tmp_path, monkeypatch):
    from chromadb.errors import InternalError

    from settle.retrieve.index.stores import chroma

    failure = InternalError("Error in compaction: Failed to apply logs to the hnsw segment writer")
    for free, kind in ((1_000_000, ResourceError), (10**12, DataError)):
        monkeypatch.setattr(chroma, "disk_free", lambda _, free=free: free)
        with pytest.raises(kind), chroma._translated(str(tmp_path)):
            raise failure


def test_lancedb_opens_without_its_client_of_a_rest_service(tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    code = (
        "import sys; from pathlib import Path; from settle.retrieve.index.stores.lancedb import Lancedb\n"
        "Lancedb().open(Path(sys.argv[1]), 'v', 2)\n"
        "print('lancedb' in sys.modules, 'lance_namespace_urllib3_client.api' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False"], done.stderr
