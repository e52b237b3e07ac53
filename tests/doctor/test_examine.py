"""What a look runs, in which order, what it says of what it did not run, and what it finds of missing files."""

import shutil
import threading
import time

import pytest

from settle.base.errors import ResourceError, SettleError
from settle.base.event_log import Events
from settle.base.files import home as settle_home
from settle.cli import main
from settle.doctor import doctor as examining
from settle.doctor.checks import Check
from settle.doctor.doctor import FOUND, checks_for, examine
from settle.doctor.find_subject import find_subject
from settle.doctor.likelihood import reader_of, shared_readers
from settle.doctor.subject import ModelFile, Running, ThisMachine, TrainingRun
from settle.machine.cores import cores
from tests.doctor.chat_model import healthy

VITAL = {"template", "rope", "damaged_weights"}


def said(capsys):
    out = capsys.readouterr()
    return out.out + out.err


def test_quick_checks_come_first_and_then_the_vital_ones():
    checks = checks_for(healthy(ModelFile))
    names = list(checks)
    slow = [name for name in names if checks[name].seconds >= examining.QUICK_SECONDS]
    assert names[-len(slow) :] == slow and set(slow[:3]) == VITAL
    assert [name for name in names if checks[name].is_vital] == slow[:3]


def test_vital_checks_look_however_long_it_takes_and_others_are_named(home, monkeypatch, capsys):
    monkeypatch.setattr(examining, "LOOK_SECONDS", -1.0)
    subject = healthy(ModelFile)
    seen = examine(subject, Events())
    assert set(seen.looked) == VITAL and "end_of_turn" in seen.left_out and not seen.findings
    assert main(["doctor", subject.name, "--json"]) == FOUND, "what was not looked at is not known to be right"
    text = said(capsys)
    assert "nothing wrong" not in text and f"3 of {3 + len(seen.left_out)} checks looked and found nothing" in text
    assert f"`settle doctor {subject.name} --only" in text and '"left_out"' in text
    assert main(["doctor", subject.name, "--only", "end-of-turn", "--only", "kv-cache"]) == 0, "named, they have time"
    assert "all 2 checks looked, and found nothing wrong" in said(capsys)


def test_a_check_that_could_not_look_is_not_nothing_wrong(home, monkeypatch, capsys):
    def no_look(self, subject):
        raise ResourceError("the disk cannot be read", "mount it")

    monkeypatch.setattr(Check.part("disk_space"), "detect", no_look)
    main(["doctor", "--only", "disk-space", "--only", "versions"])
    text = said(capsys)
    assert "nothing wrong" not in text and "1 of 2 checks looked" in text and "the disk cannot be read" in text


@pytest.fixture
def lost(home):
    """Delete the exported model of a finished run, and return its path."""
    subject = healthy(TrainingRun)
    path = settle_home() / "runs" / "2026-01-01-tune-lost-abcdef"
    shutil.copytree(subject.run.path, path)
    gone = next((path / "out").glob("*.gguf"))
    gone.unlink()
    return gone


def test_checks_that_cannot_look_for_one_reason_are_named_together(home, tmp_path, capsys):
    path = tmp_path / "zebra.gguf"
    path.write_bytes(healthy(ModelFile).model.weights.read_bytes().replace(b"llama", b"zebra"))
    main(["doctor", str(path), "--only", "template", "--only", "end-of-turn"])
    text = said(capsys)
    assert text.count("could not look") == 1 and "does not know the architecture 'zebra'" in text


def test_a_missing_file_of_a_finished_run_is_a_finding(lost, capsys):
    assert main(["doctor", "lost", "--only", "missing-file"]) == 3
    assert f"{lost.name} is missing" in said(capsys)
    assert main(["doctor", "--only", "damaged-runs"]) == 3
    text = said(capsys)
    assert lost.name in text and "settle export lost" in text and "remove" not in text
    finding = next(iter(Check.part("missing_file")().detect(find_subject("lost", Running()))))
    fix = Check.part("missing_file")().fix(finding, find_subject("lost", Running()))
    assert fix.command == f"settle export lost --to lora-gguf --out {lost}"


def test_a_chat_with_it_says_how_to_export_it_again(lost, capsys):
    assert main(["chat", "run:lost", "hello"]) != 0
    text = said(capsys)
    assert f"{lost.name}, which lost exported, is no longer in" in text and "settle export lost" in text


@pytest.mark.parametrize(("load", "found"), [(0.3, False), (1.9, False), (2.0, True), (10.0, True)])
def test_a_busy_machine_is_a_finding(load, found):
    usable = cores().usable
    running = Running(load=load * usable)
    findings = list(Check.part("busy_machine")().detect(ThisMachine(running=running)))
    assert bool(findings) == found
    if found:
        assert f"1/{load:.0f} of it" in findings[0].what and f"{usable} cores" in findings[0].evidence[0]


def test_the_programs_that_compute_are_named():
    stop = time.monotonic() + 2.5

    def burn():
        while time.monotonic() < stop:
            sum(range(10_000))

    thread = threading.Thread(target=burn)
    thread.start()
    running = Running(load=50.0 * cores().usable)
    (finding,) = Check.part("busy_machine")().detect(ThisMachine(running=running))
    thread.join()
    assert "of a core)" in finding.evidence[-1]


def test_examinations_in_two_threads_do_not_share_a_reader(home):
    model = healthy(ModelFile).model
    readers, barrier = [], threading.Barrier(2)

    def look():
        with shared_readers():
            with reader_of(model) as first:
                readers.append(first)
            barrier.wait()
            with reader_of(model) as again:
                assert again is first, "within an examination the file is loaded once"
            barrier.wait()
        with pytest.raises(SettleError):
            again.engine.tokenize("closed")

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, readers))) == 2
