"""A folder that cannot be opened is skipped and reported; one that was pointed at says so."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from settle.base.errors import DataError
from settle.documents.walk import Walk

WALK = """
import sys
from pathlib import Path
from settle.base.errors import DataError
from settle.documents.walk import Walk
try:
    walk = Walk(lambda reason, path: print("skipped", path, reason), looks_inside=True)
    print("files", *sorted(file.name for file in walk.files([Path(sys.argv[1])])))
except DataError as e:
    print(e.what, e.fix, sep=" | ")
"""
# root opens everything, but for one that gave up the right to
AS_ANYBODY = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "notes"
    (folder / "locked").mkdir(parents=True)
    (folder / "a.txt").write_text("words")
    (folder / "locked" / "b.txt").write_text("words")
    yield folder
    for path in (folder, folder / "locked"):
        path.chmod(0o755)


def walked(path: Path) -> list[str]:
    done = subprocess.run([*AS_ANYBODY, sys.executable, "-c", WALK, str(path)], capture_output=True, text=True)
    if done.stderr.startswith("setpriv"):
        pytest.skip("this system lets root give up nothing")
    assert not done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("mode", [0o000, 0o200, 0o300])
def test_a_closed_folder_is_skipped_and_reported(locked: Path, mode: int) -> None:
    (locked / "locked").chmod(mode)
    assert walked(locked) == ["skipped locked folder cannot be opened: Permission denied", "files a.txt"]


def test_files_that_cannot_be_seen_are_skipped_and_reported(locked: Path) -> None:
    (locked / "locked").chmod(0o400)  # names can be listed, and nothing else
    assert walked(locked) == ["skipped locked/b.txt cannot be read", "files a.txt"]


def test_a_closed_folder_that_was_pointed_at_says_so(locked: Path) -> None:
    fix = "change its permissions, or give another folder"
    (locked / "locked").chmod(0)
    assert walked(locked / "locked") == [f"{str(locked / 'locked')!r} cannot be opened: Permission denied | {fix}"]
    assert walked(locked / "locked" / "b.txt")[0].endswith(f"cannot be opened: Permission denied | {fix}")


def test_links_to_files_outside_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("words of others")
    (folder / "a.txt").write_text("words")
    (folder / "inside.txt").symlink_to(folder / "a.txt")
    (folder / "outside.txt").symlink_to(tmp_path / "secret.txt")
    assert walked(folder) == ["skipped outside.txt a link to a file outside of the folder", "files a.txt inside.txt"]
    (tmp_path / "link").symlink_to(folder)
    assert walked(tmp_path / "link")[-1] == "files a.txt inside.txt"


MARKED = {
    "ls.1": b'.\\" a comment\n\n.TH LS 1\n.SH NAME\nls \\- list\n',
    "printf.3": b".Dd May 2026\n.Dt PRINTF 3\n",
    "thesis.tex": b"% of mine\n\\documentclass{article}\n",
    "saved.txt": b"<!-- saved -->\n<!DOCTYPE html><p>words",
}
PLAIN = {"a.txt": b"words\n.TH is a macro", "b.log": b"\n" * 8000 + b"{", "c": b"% a comment\nwords", "d.cfg": b"<p>"}


def test_text_with_marks_is_named_with_the_way_to_convert_it(tmp_path: Path) -> None:
    """Rich text is left out; what people may want to learn from as it is, is read and named."""
    for name, data in {**MARKED, **PLAIN, "letter.rtf": b"{\\rtf1\\ansi words}"}.items():
        (tmp_path / name).write_bytes(data)
    noted, skipped = dict[str, str](), dict[str, str]()
    walk = Walk(
        lambda why, path: skipped.update({path: why}), lambda what, path: noted.update({path: what}), looks_inside=True
    )
    assert {file.name for file in walk.files([tmp_path])} == {*MARKED, *PLAIN}
    assert set(noted) == set(MARKED) and all("`" in what for what in noted.values())
    assert list(skipped) == ["letter.rtf"] and "pandoc" in skipped["letter.rtf"]
    with pytest.raises(DataError, match="letter.rtf cannot be used: rich text.*pandoc"):
        list(walk.files([tmp_path / "letter.rtf"]))
    skipped.clear()
    indexed = {file.name for file in Walk(lambda why, path: skipped.update({path: why})).files([tmp_path])}
    assert indexed == {"thesis.tex", "saved.txt", "a.txt", "b.log", "d.cfg"}
    assert "mandoc" in skipped["ls.1"] and "pandoc" in skipped["letter.rtf"] and "no reader" in skipped["c"]
