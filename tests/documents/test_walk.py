"""A folder that cannot be opened is skipped and reported; one that was pointed at says so."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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
