"""Reading in a child: what a file does to its reader, it does not do to us."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from settle.base.errors import UsageError
from settle.base.python_command import extra_command
from settle.documents import reader_pool
from settle.documents.reader_child import LARGE
from settle.documents.reader_pool import Read, read_all
from settle.documents.readers import reader_of


def _all(*paths: Path, seconds: float = 60.0) -> list[Read]:
    return list(read_all(((path, reader_of(path.name) or "text") for path in paths), seconds))


def _children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "settle.documents.reader_child" in p.cmdline()]


def _text(path: Path, text: str = "words\n") -> Path:
    path.write_text(text)
    return path


def test_documents_come_in_order_with_their_blocks(tmp_path):
    paths = [_text(tmp_path / f"{i:03}.txt", f"words of {i}\n\nand more\n") for i in range(200)]
    reads = _all(*paths)
    assert [read.path for read in reads] == paths
    assert [read.blocks[0].text for read in reads] == [f"words of {i}" for i in range(200)]
    assert all(read.blocks[1].place.line == 3 and not read.error for read in reads)
    assert not _children()


def test_one_process_reads_many_files_however_large_the_one_is_that_started_it(tmp_path):
    held = b"." * (LARGE + (64 << 20))
    process = set()

    def asked():
        for i in range(8):
            process.update(child.pid for child in _children())
            yield _text(tmp_path / f"{i}.txt"), "text"

    assert len(list(read_all(asked()))) == 8 and held
    assert len(process) == 1


def test_a_file_that_vanishes_in_between(tmp_path):
    first, gone, last = (_text(tmp_path / f"{i}.txt") for i in range(3))
    asked = iter([(first, "text"), (gone, "text"), (last, "text")])
    gone.unlink()
    errors = [read.error for read in read_all(asked)]
    assert errors == ["", "cannot be read: No such file or directory", ""]


def test_a_reader_that_takes_too_long_is_ended_and_the_next_file_is_read(tmp_path):
    began = time.monotonic()
    reads = _all(_text(tmp_path / "a.stuck", "sleep"), _text(tmp_path / "b.txt"), seconds=4)
    assert [read.error for read in reads] == ["reading it takes more than 4 s", ""]
    assert time.monotonic() - began < 30 and not _children()


def test_a_reader_that_dies_is_told_from_one_that_fails(tmp_path):
    reads = _all(
        *(_text(tmp_path / f"{name}.stuck", name) for name in ("abort", "kill", "exit", "raise", "memory", "print"))
    )
    assert [read.error for read in reads] == [
        "its reader crashed (SIGABRT)",
        "its reader was ended from outside: no memory left?",
        "its reader ended without a word",
        "damaged or not what its name says: ZeroDivisionError: division by zero",
        "reading it takes more than 4 GiB",
        "",
    ]
    assert [block.text for block in reads[-1].blocks] == ["said in spite of what was printed"]


def test_a_library_that_is_missing_is_named_with_what_to_install(tmp_path):
    with pytest.raises(UsageError, match=r"needs no_such_library") as raised:
        _all(_text(tmp_path / "a.stuck", "import"), _text(tmp_path / "b.txt"))
    assert raised.value.fix == extra_command("rag") and not _children()


def test_too_many_notes_and_too_much_text_are_cut(tmp_path):
    (read,) = _all(_text(tmp_path / "a.stuck", "much"))
    assert len(read.notes) == 20 and read.notes[-1] == "and more of the kind"
    assert 60 < sum(len(block.text) for block in read.blocks) >> 20 <= 64 and not read.error


def test_what_is_read_ahead_is_bounded_by_its_text(tmp_path, monkeypatch):
    monkeypatch.setattr(reader_pool, "AHEAD", 100_000)
    asked: list[Path] = []

    def ask():
        for i in range(40):
            asked.append(_text(tmp_path / f"{i}.txt", "word " * 4000))
            yield asked[-1], "text"

    reads = read_all(ask())
    next(reads)
    time.sleep(1.0)
    assert len(asked) < 12
    assert len(list(reads)) == 39


def test_closing_early_leaves_no_process_and_does_not_wait(tmp_path):
    path = _text(tmp_path / "a.stuck", "sleep")
    reads = read_all(iter([(_text(tmp_path / "b.txt"), "text"), (path, "stuck"), (path, "stuck")]))
    assert next(reads).blocks
    time.sleep(0.5)  # the next one is being read
    assert _children()
    began = time.monotonic()
    reads.close()
    assert time.monotonic() - began < 5 and not _children()
    assert not [thread for thread in threading.enumerate() if "work" in thread.name]


_PARENT = """
import sys
from pathlib import Path
from settle.documents.reader_pool import read_all
print("begun", flush=True)
for read in read_all(((Path(sys.argv[1]), "stuck") for _ in range(3)), 300):
    pass
"""


@pytest.mark.parametrize(("signal_", "within"), [(signal.SIGINT, 8), (signal.SIGKILL, 8)])
def test_a_parent_that_ends_takes_its_child_along(tmp_path, signal_, within):
    """Ctrl-C ends it at once; a child that outlives its parent notices."""
    path = _text(tmp_path / "a.stuck", "sleep")
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert parent.stdout and parent.stdout.readline() == b"begun\n"
    child = _wait_for(lambda: psutil.Process(parent.pid).children())[0]
    _wait_for(lambda: (tmp_path / "asleep").exists())
    parent.send_signal(signal_)
    parent.wait(within)
    psutil.wait_procs([child], within)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    parent.stdout.close()


def _wait_for(ready, seconds=20.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := ready():
            return found
        time.sleep(0.05)
    raise AssertionError("it never came")


def test_the_child_ends_itself_when_a_library_holds_on(tmp_path):
    """The alarm of the system does not need the interpreter, which a library may hold for good."""
    asked = f'{{"path": "{_text(tmp_path / "a.stuck", "hold")}", "reader": "stuck", "seconds": -8}}\n'
    child = subprocess.Popen(
        [sys.executable, "-m", "settle.documents.reader_child"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert child.stdin
    child.stdin.write(asked.encode())
    child.stdin.flush()
    assert child.wait(30) == -signal.SIGALRM
    child.stdin.close()
