import contextlib
import gc
import importlib
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from settle.audit.ledger import read_sessions
from tests import examples, once

TESTS = Path(__file__).parent

# Two tests run at a time, and tiny models gain nothing from threads: two that wait for each other only spin. Said
# before torch is loaded; what a test starts inherits it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# As in the Makefile: a shell that keeps Python from storing compiled modules would make every worker, and each of the
# hundreds of processes that tests start, compile settle and the asserts again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell without job control starts what runs in the background with SIGINT ignored, and every child inherits that: the
# tests of Ctrl-C would wait for a signal that never arrives.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# What collection makes stays: to look through it again and again took a quarter of its time.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(2_000)  # that of later Pythons
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Let each worker of the whole suite begin with other files, so that the asserts of a file are compiled by one of
    them: in a fresh clone this is half of the time before the first test."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    if worker == "0" or TESTS not in {Path(given).resolve() for given in session.config.args}:
        return
    names = sorted(".".join(p.relative_to(TESTS.parent).with_suffix("").parts) for p in TESTS.rglob("test_*.py"))
    first = len(names) * int(worker) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    for name in names[first:] + names[:first]:
        with contextlib.suppress(Exception, pytest.skip.Exception):  # the collection that follows says it
            importlib.import_module(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: one that begins last would keep one core waiting for the other."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True, scope="session")
def own_home(tmp_path_factory):
    """What a test keeps without asking for a home is not kept in that of the person who runs it."""
    base = tmp_path_factory.getbasetemp()
    once.share(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SETTLE_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture
def home(request, tmp_path, monkeypatch):
    """A fresh SETTLE_HOME. What a test's commands connect to beyond this machine they have to have declared."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("SETTLE_HOME", str(folder))
    yield folder
    undeclared = [c.target for c in read_sessions((folder / "ledgers").glob("*.jsonl")).undeclared]
    assert not undeclared or request.path.parent.name == "audit", undeclared  # its tests reach beyond on purpose


@pytest.fixture
def installed_ia3(tmp_path_factory, monkeypatch):
    """Another package that brings one adapter, in one file: the example of docs/develop.md."""
    yield from installed({"model/adapters": "ia3:IA3"}, tmp_path_factory, monkeypatch)


def installed(parts, tmp_path_factory, monkeypatch):
    """A package that brings examples of docs/develop.md, family → "name:Class", while a fixture lasts."""
    examples.install(tmp_path_factory.mktemp("site"), parts, monkeypatch)
    yield
    monkeypatch.undo()
    examples.forget_parts()


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of word-like text, and a home of its own."""
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path / "home"))
    return write_text(tmp_path / "text.txt")


def write_text(path: Path) -> Path:
    rng = random.Random(0)
    words = "sea wind carries salt over old stone walls while gulls turn above quiet harbour lights".split()  # noqa: SIM905
    path.write_text("".join(f"{' '.join(rng.choices(words, k=9))}.\n\n" for _ in range(900)))
    return path
