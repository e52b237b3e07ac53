"""The process that reads documents reads nothing else, and reaches nothing: by real children, on Linux."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from settle.documents.reader_pool import read_all
from settle.documents.readers import reader_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are Linux's")
TRIED = """
import sys
from settle.documents.confine import confine
confine([sys.argv[1]])
def tried(what, act):
    try:
        act()
    except OSError as e:
        print(what, type(e).__name__)
    else:
        print(what, "done")
import os, pathlib, socket, subprocess
import sqlite3, xml.dom.minidom  # libraries can be loaded later
tried("read", lambda: pathlib.Path(sys.argv[1], "a.txt").read_text())
tried("outside", lambda: pathlib.Path(sys.argv[2], "b.txt").read_text())
tried("listing", lambda: os.listdir(sys.argv[2]))
tried("write", lambda: pathlib.Path(sys.argv[1], "c.txt").write_text("x"))
tried("socket", lambda: socket.socket())
tried("program", lambda: subprocess.run(["/bin/true"]))
"""


def _has_landlock() -> bool:
    return bool(ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1) > 0)


@pytest.fixture
def folders(tmp_path):
    for name, file in (("mine", "a.txt"), ("others", "b.txt")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("words of a document\n")
    return tmp_path / "mine", tmp_path / "others"


def test_what_a_confined_process_can_do(folders):
    command = [sys.executable, "-P", "-c", TRIED, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    said = dict(line.split() for line in done.stdout.splitlines())
    assert said["socket"] == said["program"] == "PermissionError" and said["read"] == "done"
    if _has_landlock():
        assert said["outside"] == said["listing"] == said["write"] == "PermissionError"


@pytest.mark.skipif(not _has_landlock(), reason="this kernel has no Landlock")
def test_the_reader_reads_documents_below_its_roots_and_no_others(folders):
    mine, others = folders
    (mine / "link.txt").symlink_to(others / "b.txt")
    (mine / "page.html").write_text("<p>text of a page</p>")
    files = [mine / "a.txt", others / "b.txt", mine / "link.txt", mine / "page.html", Path("/etc/passwd")]
    reads = list(read_all(((file, reader_of(file.name) or "text") for file in files), roots=[mine]))
    assert [read.error for read in reads] == ["", *["cannot be read: Permission denied"] * 2, "", reads[1].error]
    assert not reads[1].blocks and reads[3].blocks[0].text == "text of a page"


def test_an_editable_install_is_read_too(folders, monkeypatch):
    """Its folder is not on the module path of a child, where nobody names it."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    mine, _ = folders
    (document,) = read_all([(mine / "a.txt", reader_of("a.txt"))], roots=[mine])
    assert document.error == "" and document.blocks
