"""A run whose folder was half deleted: the doctor says so, or looks at what is left, and never ends in a traceback."""

import shutil

import pytest

from settle.base.files import home as settle_home
from settle.cli import main
from settle.doctor.subject import TrainingRun
from tests.doctor.chat_model import healthy

CHECKS = ("did-nothing", "unstable", "forgot", "failed-run", "memory-training")


@pytest.fixture
def copied(home, tmp_path):
    """Return a run of this machine that tuned the chat model."""
    subject = healthy(TrainingRun)
    path = settle_home() / "runs" / "2026-01-01-tune-halved-abcdef"
    shutil.copytree(subject.run.path, path)
    return path


def looked(capsys):
    code = main(["doctor", "halved", *(f"--only={name}" for name in CHECKS)])
    shown = "".join(capsys.readouterr())
    assert "Traceback" not in shown
    return code, shown


@pytest.mark.parametrize("name", ["plan.json", "events.jsonl", "recipe.toml", "forecast.json", "out", "checkpoints"])
def test_what_is_gone_is_no_traceback(copied, name, capsys):
    gone = copied / name
    if gone.is_dir():
        shutil.rmtree(gone)
    else:
        gone.unlink(missing_ok=True)
    code, shown = looked(capsys)
    assert code in (0, 1, 3), shown


@pytest.mark.parametrize("name", ["plan.json", "out/models.json"])
def test_a_torn_file_is_named(copied, name, capsys):
    torn = copied / name
    torn.write_bytes(torn.read_bytes()[:40])
    code, shown = looked(capsys)
    assert torn.name in shown, shown


def test_rows_that_were_deleted_are_said_to_be(copied, capsys):
    shutil.rmtree(settle_home() / "tokens")
    code, shown = looked(capsys)
    assert "were deleted" in shown


def test_torn_lines_of_its_events_are_passed_over(copied, capsys):
    events = copied / "events.jsonl"
    events.write_bytes(b'{"kind": "st\n\xff\xfe\n[1]\n' + events.read_bytes() + b'{"kind": "failed"')
    assert looked(capsys)[0] == 0
