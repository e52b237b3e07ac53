"""The one owner of the number of threads."""

import os
from types import SimpleNamespace

import pytest

from settle.commands import Command
from settle.infer.child_process import Load
from settle.machine import commanded, cores, is_asked, num_threads, openmp_wait, threads
from settle.machine.openmp_wait import OthersLoad
from settle.machine.threads import CONVENTION, ThreadSettings, asked_threads
from tests.fake_time import set_time

COMPUTES = ("train", "tune", "distill", "shrink", "resume", "index", "ask", "chat", "eval", "export", "serve")


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    monkeypatch.delenv(CONVENTION, raising=False)


@pytest.mark.parametrize("name", COMPUTES)
def test_everything_that_computes_takes_threads(name):
    command = Command.parts()[name]
    assert issubclass(command, ThreadSettings)
    assert command.model_fields["threads"].description == ThreadSettings.model_fields["threads"].description


def test_who_decides(monkeypatch):
    assert num_threads() == cores().usable and not is_asked() and commanded() is None
    monkeypatch.setenv(CONVENTION, "3,1")
    assert num_threads() == 3 and is_asked() and commanded() is None
    with asked_threads(5):
        assert num_threads() == 5 == commanded() and num_threads(2) == 2
        assert os.environ[CONVENTION] == "5"
        with asked_threads(None):
            assert num_threads() == 5
    assert num_threads() == 3 and os.environ[CONVENTION] == "3,1"
    monkeypatch.setenv(CONVENTION, "many")
    assert num_threads() == cores().usable


@pytest.mark.parametrize(
    ("ranks", "conventional", "asked", "number"),
    [
        (1, None, 20, 20),
        (2, None, 20, 4),
        (2, None, 3, 3),
        (2, 1, None, 4),
        (1, 1, None, 1),
        (3, 2, None, 2),
        (16, 2, None, 1),
    ],
)
def test_ranks_share_the_cores_of_their_host(ranks, conventional, asked, number, monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: SimpleNamespace(usable=8))
    monkeypatch.setattr(threads, "launched", lambda: SimpleNamespace(local_size=ranks))
    if conventional:
        monkeypatch.setenv(CONVENTION, str(conventional))
    assert num_threads(asked) == number


def test_a_child_of_llama_cpp_asks_too(tmp_path):
    load = Load(tmp_path / "x.gguf", 64)
    assert load.to_json()["threads"] == cores().usable
    with asked_threads(7):
        assert load.to_json()["threads"] == 7


def test_load_of_others(tmp_path, monkeypatch):
    """In cores, of those that we may run on; our own work is not counted."""
    cores_allowed = sorted(os.sched_getaffinity(0))
    ticks = os.sysconf("SC_CLK_TCK")

    def write(seconds: int) -> None:
        lines = ["cpu 0 0 0 0 0 0 0 0 0 0"]
        lines += [f"cpu{n} {seconds * ticks} 0 0 77 5 0 0 0 0 0" for n in [*cores_allowed, max(cores_allowed) + 1]]
        (tmp_path / "stat").write_text("\n".join(lines) + "\nintr 1\n")

    clock = {"now": 50.0, "own": 1.0}
    set_time(monkeypatch, openmp_wait, monotonic=lambda: clock["now"], process_time=lambda: clock["own"])
    write(10)
    load = OthersLoad(tmp_path)
    write(14)
    clock.update(now=54.0, own=2.0)
    assert load.read() == pytest.approx(len(cores_allowed) - 0.25)
    clock.update(now=60.0)
    assert load.read() == 0.0
    assert OthersLoad(tmp_path / "nothing").read() == 0.0
