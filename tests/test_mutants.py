"""The short form of bench/mutants.py: what tests caught when it was recorded, they still catch."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="trials are forks")
def test_faults_that_were_caught_are_caught_again() -> None:
    from mutants import caught_before
    from mutation.trials import still_caught

    caught = caught_before(most=2)
    assert len(caught) == 2
    for fault, test in caught:
        assert still_caught(ROOT, fault, test), f"{test} passes in spite of {fault.key}"


def test_a_test_that_never_reaches_a_fault_does_not_catch_it() -> None:
    from mutants import caught_before
    from mutation.trials import still_caught

    ((fault, _),) = caught_before(most=1)
    assert not still_caught(ROOT, fault, "tests/machine/test_allocator.py")


PRODUCT = """
import torch


def test_product():
    one = torch.ones(512, 512)
    assert (one @ one).sum() == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="trials are forks")
def test_a_fork_computes_though_this_process_has_threads(tmp_path: Path) -> None:
    """A fork has none of the threads of its parent's pool, and waited for them without an end."""
    from mutants import caught_before
    from mutation.trials import still_caught

    (tmp_path / "test_product.py").write_text(PRODUCT)
    ((fault, _),) = caught_before(most=1)
    before, one = torch.get_num_threads(), torch.ones(512, 512)
    torch.set_num_threads(2)
    try:
        assert (one @ one).sum() == 512**3
        assert still_caught(ROOT, fault, os.path.relpath(tmp_path / "test_product.py", ROOT))
    finally:
        torch.set_num_threads(before)


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
