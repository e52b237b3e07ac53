"""Runs that ended with an error, and runs whose folder was half deleted: what is found of them, without a traceback."""

import shutil
from dataclasses import replace

import pytest

from settle.base.event_log import Events
from settle.base.events import Opened, OutOfMemory, PhaseStarted, RunFailed
from settle.base.files import home as settle_home
from settle.base.files import read_json, write_json
from settle.base.run import Run
from settle.cli import main
from settle.doctor.checks import Check
from settle.doctor.doctor import examine
from settle.doctor.find_subject import find_subject
from settle.doctor.subject import ModelFile, Running, TrainingRun
from settle.formats import map_file
from settle.formats.gguf.header import read_header
from tests.doctor.chat_model import healthy
from tests.doctor.example_run import example_run

FAILED = RunFailed(what="the file does not behave like the trained model", fix="nothing was exported")


def add_events(run, *events):
    log = Events(run.events)
    for event in events:
        log.emit(event)
    log.close()


@pytest.fixture
def failed(home):
    """Return a run that was expected to take nearly all memory, and ended with an error of another kind."""
    run = Run.create("tune", "gone")
    write_json(run.path / "plan.json", {"version": 1, "machine": {"memory": {"available": 1000}}})
    write_json(run.path / "forecast.json", {"peak_memory": {"value": 990.0}})
    add_events(run, PhaseStarted(phase="export", elapsed=1.0), FAILED)
    return run


def found(name):
    return examine(find_subject(name, Running()), Events()).findings


def test_it_is_a_finding_in_its_own_words_with_its_advice(failed):
    (finding,) = found("gone")  # want of memory is not to blame where the run says otherwise
    assert finding.check == "failed_run" and "'export'" in finding.what and FAILED.what in finding.what
    assert finding.evidence == ("its advice: nothing was exported",)
    check = Check.part(finding.check)()
    fix = check.fix(finding, find_subject("gone", Running()))
    assert (fix.what, fix.command) == ("nothing was exported; then resume it", "settle resume gone")


def test_this_machine_names_the_run_that_failed(failed, capsys):
    assert main(["doctor", "--only", "interrupted-runs"]) == 3
    shown = "".join(capsys.readouterr())
    assert "the run gone failed" in shown and FAILED.what in shown and "settle doctor gone" in shown


def test_a_session_that_came_after_is_what_counts(failed):
    add_events(failed, Opened(), PhaseStarted(phase="export", elapsed=2.0))
    assert "failed_run" not in [finding.check for finding in found("gone")]


def test_want_of_memory_is_its_own_checks(failed):
    add_events(failed, Opened(), OutOfMemory(held=10, missing=5), RunFailed(what="no memory"))
    assert [finding.check for finding in found("gone")] == ["memory_training"]


def test_a_rate_that_leaves_nothing_of_the_base_comes_first(home, tmp_path):
    subject = example_run(healthy(ModelFile), tmp_path, {"optimizer": {"name": "adamw", "lr": 30.0}})
    add_events(subject.run, Opened(), PhaseStarted(phase="export", elapsed=9.0), FAILED)
    findings = examine(subject, Events(), ["unstable", "failed-run"]).findings
    assert [finding.check for finding in findings] == ["unstable", "failed_run"]
    assert "to guess at random costs" in findings[0].evidence[-1] or "jumped" in findings[0].evidence[-1]
    assert "settle tune --recipe" in Check.part("unstable")().fix(findings[0], subject).command


def test_a_usual_rate_is_not_unstable_wherever_it_ends(home, tmp_path):
    """One step teaches nothing, and no rate is to blame."""
    subject = example_run(healthy(ModelFile), tmp_path, {"optimizer": {"name": "adamw", "lr": 1e-6}}, steps=12)
    assert not list(Check.part("unstable")().detect(subject))


def test_a_high_rate_whose_file_holds_no_numbers_is_unstable(home, tmp_path):
    """The losses of the run itself fell."""
    subject = healthy(TrainingRun)
    run = Run(shutil.copytree(subject.run.path, tmp_path / subject.run.path.name))
    plan = read_json(run.path / "plan.json")
    plan["optimizer"]["lr"], plan["origin"]["optimizer.lr"] = 3.0, "asked"
    write_json(run.path / "plan.json", plan)
    record = read_json(run.out / "models.json")
    (lora,) = run.out.glob("*-lora.gguf")
    for model in record["models"]:
        model["path"] = str(lora)
    write_json(run.out / "models.json", record)
    subject = replace(subject, run=run)
    assert not list(Check.part("unstable")().detect(subject)), "it reads its rows well"
    header = read_header(map_file(lora), lora.name)
    with lora.open("r+b") as file:
        for tensor in header.tensors:
            file.seek(tensor.start)
            file.write(b"\xff\x7f" * (tensor.num_bytes // 2))  # a float of two or four bytes that is no number
    (finding,) = Check.part("unstable")().detect(subject)
    assert "no number" in finding.evidence[-1]


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
