"""Every check of the doctor finds its own failure and no other, proves it and mends it, and finds nothing in health."""

import pytest

from settle.base.event_log import Events
from settle.doctor.checks import Check, proposed_fix, proposed_trial
from settle.doctor.doctor import examine
from settle.doctor.subject import LoggedHistory, Subject, ThisMachine
from settle.experiment.run import prove
from tests.doctor.chat_model import healthy
from tests.doctor.faults import FAULTS
from tests.retrieve.conftest import joined  # noqa: F401  the embedder of the collection

CHECKS = Check.parts()


def test_each_has_a_number_of_its_own_and_a_symptom() -> None:
    numbers = [part.number for part in CHECKS.values()]
    assert len(set(numbers)) == len(numbers) and all(1 <= number <= 99 for number in numbers)
    assert all(part.symptom and part.seconds > 0 for part in CHECKS.values())


@pytest.mark.parametrize("about", sorted({part.about for part in CHECKS.values()}, key=str))
def test_nothing_is_found_in_health(about: type[Subject], home) -> None:
    seen = examine(healthy(about), Events())
    assert [finding.what for finding in seen.findings] == [] and not seen.failed


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_an_injected_failure_is_found_first_proven_and_mended(name: str, home, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # a fix is written into the current folder
    if name == "memory_training":  # what its processes free goes back at once, so that a limit means the same each time
        monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(1 << 16))
        monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", str(1 << 16))
    check = CHECKS[name]()
    broken = FAULTS[name](healthy(check.about), tmp_path)
    finding = examine(broken, Events()).findings[0]
    assert finding.check == name
    trial = proposed_trial(finding, broken, tmp_path)
    if trial is None:  # what a machine holds, or another trainer did, cannot be run again
        assert check.about in (ThisMachine, LoggedHistory) or name in ("failed_run", "missing_file")  # no side to run
        assert proposed_fix(finding, broken).command
        return
    items = [*map(repr, trial.items), *map(repr, trial.others)]
    assert len(set(items)) == len(items), "the re-test must be on other items than the proof"
    proof = prove(trial, tmp_path / "measurements.jsonl", Events())
    assert (proof.state, proof.verified) == ("proven", True), proof.to_json()
    fix = proposed_fix(finding, broken)
    assert fix.what and fix.command
    if fix.write and fix.undo:
        before = set(tmp_path.iterdir())
        fix.write()
        made = set(tmp_path.iterdir()) - before
        assert made
        if fix.mended:
            assert not list(check.detect(fix.mended()))
        fix.undo()
        assert not made & set(tmp_path.iterdir())
