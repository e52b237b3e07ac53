"""The rule for commit subjects, as the hook that `make install` sets up applies it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOOKS = Path(__file__).parent.parent / ".githooks"


def check(message):
    command = [sys.executable, str(HOOKS / "subject.py"), "--message", str(message)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    "subject",
    [
        "Read an index's rows once",
        "Keep filling apart",
        'Revert "The judge learned"',
        "Merge branch 'x'",
        "Embed rows",
        "R" * 72,
    ],
)
def test_imperative_subjects_pass(tmp_path, subject):
    (tmp_path / "message").write_text(subject + "\n\nThe body is free.\n", encoding="utf-8")
    done = check(tmp_path / "message")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "subject",
    [
        "The judge has learned",
        "Reads rows once",
        "Reading rows",
        "RESULTS: more",
        "read rows",
        "Read rows.",
        "R" * 73,
        f"Merge {67 * 'r'}",
    ],
)
def test_other_subjects_are_refused_with_the_reason(tmp_path, subject):
    (tmp_path / "message").write_text(subject, encoding="utf-8")
    done = check(tmp_path / "message")
    assert done.returncode == 1 and subject in done.stderr


def test_the_hook_refuses_a_commit(tmp_path):
    """With git itself, in a repository of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    shutil.copytree(HOOKS, tmp_path / ".githooks")

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "core.hooksPath=.githooks"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    assert git("init", "-q").returncode == 0
    refused = git("commit", "-q", "--allow-empty", "-m", "The rows")
    assert refused.returncode and "imperative" in refused.stderr
    assert git("commit", "-q", "--allow-empty", "-m", "Read the rows").returncode == 0
