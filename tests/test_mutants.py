"""The short form of bench/mutants.py: what tests caught when it was recorded, they still catch."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")


def test_faults_that_were_caught_are_caught_again() -> None:
    from mutants import caught_before
    from mutation.trials import run_alone

    caught = caught_before(most=2)
    assert len(caught) == 2
    for fault, test in caught:
        done = run_alone(ROOT, fault, test)
        is_caught = done.returncode == pytest.ExitCode.TESTS_FAILED and f"FAILED {test}" in done.stdout
        assert is_caught, f"{fault.key}: {test}\n{done.stdout}"


def test_a_test_that_never_reaches_a_fault_does_not_catch_it() -> None:
    from mutants import caught_before
    from mutation.trials import run_alone

    ((fault, _),) = caught_before(most=1)
    done = run_alone(ROOT, fault, "tests/machine/test_allocator.py")
    assert done.returncode == pytest.ExitCode.OK, done.stdout


def test_every_named_fault_has_its_text_in_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    from mutants import named

    assert len(named(ROOT)) >= 58 and capsys.readouterr().out == ""


def test_a_fault_is_put_where_it_says() -> None:
    """Each differs from the source in its own place alone, and leaves every line where it was."""
    from mutation.faults import compiles, faults_of

    path = "settle/evaluate/tasks/f1.py"
    source = (ROOT / path).read_bytes()
    faults = faults_of(ROOT, path)
    assert len({fault.key for fault in faults}) == len(faults) > 3
    assert all(compiles(ROOT, fault) for fault in faults)
    for fault in faults:
        broken = fault.put_into(source)
        assert broken != source and broken.count(b"\n") == source.count(b"\n")
        assert source[fault.start : fault.end].decode() == fault.old
        assert fault.statement.encode() in source.splitlines()[fault.line - 1]
