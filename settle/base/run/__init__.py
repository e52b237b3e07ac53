"""A run is a folder. Nothing about it is stored twice: its status is derived from what lies in it."""

import contextlib
import datetime
import os
import re
import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from settle.base.errors import RunError, UsageError, cannot_write
from settle.base.event_log import tail
from settle.base.events import Event, PhaseStarted, RunFailed, RunStarted, WorkStarted
from settle.base.files import home, read_json, write_atomic, write_json
from settle.base.run.result import Result, parse_result

TAIL_BYTES = 256 << 10  # the end of events.jsonl that surely holds the latest evaluation
FAILS_SOON_SECONDS = 10.0  # in which a command says what is wrong with its files
ELSEWHERE = "or set SETTLE_HOME to a folder that has both"
NAMES = "names.txt"  # in a folder: the names that the run was given later, the latest last
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}")


class WorkFolder:
    """A folder of work that can be resumed: a run, a choice, a pick, a proof or a collection.

    One process at a time works in it. Its status is derived from what lies in it: result.json is written last.
    """

    lock_file = ".lock"

    def __init__(self, path: Path, name: str, work: str = "working on it") -> None:
        self.path, self.name, self._work = path, name, work
        self.events = path / "events.jsonl"

    @property
    def status(self) -> str:
        """The word for its state: finished, running or interrupted."""
        if (self.path / "result.json").exists():
            return "finished"
        if not (self.path / self.lock_file).exists():  # to look must not make again what is being deleted
            return "interrupted"
        try:
            with self.lock():
                return "interrupted"
        except RunError:
            return "running"

    @property
    def has_begun(self) -> bool:
        """Return whether the work has its plan: what was asked is in order, and a stop from now on can be resumed."""
        return (self.path / "plan.json").exists()

    @property
    def failure(self) -> RunFailed | None:
        """The error that the latest session ended with; None where it ended otherwise, or has not ended."""
        events = reversed(tail(self.events, TAIL_BYTES))
        latest = next((event for event in events if isinstance(event, RunFailed | PhaseStarted)), None)
        return latest if isinstance(latest, RunFailed) else None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process; the system releases it when the process ends, however it ends.

        Raises RunError where another process holds it, ResourceError where it cannot be written.
        """
        try:
            lock = FileLock(self.path / self.lock_file, timeout=0, is_singleton=False)
            lock.acquire()
        except Timeout:
            raise RunError(f"another settle is {self._work}", "wait for it, or stop it, and try again") from None
        except OSError as e:
            raise cannot_write(self.path, e, ELSEWHERE) from None
        try:
            yield
        finally:
            lock.release()

    def read(self, file: str) -> Any:
        """Return a JSON file of the folder, or None when it does not exist."""
        path = self.path / file
        return read_json(path) if path.exists() else None


class Run(WorkFolder):
    """One run folder: recipe.toml, plan.json, forecast.json, events.jsonl, checkpoints/, out/, result.json.

    earlier: names that it had before it was renamed, the first one first. They still lead to it: its folder and its
    files stay where they are, so what points to a run stays right.
    """

    def __init__(self, path: Path) -> None:
        is_dated = path.name.count("-") >= 5  # <date>-<command>-<name>-<id>
        first = path.name.split("-", 4)[-1].rsplit("-", 1)[0] if is_dated else path.name
        *earlier, name = [first, *_later_names(path)]
        super().__init__(path, name, f"working on {name!r}")
        self.earlier = tuple(each for each in dict.fromkeys(earlier) if each != name)
        self.command = path.name.split("-", 4)[3] if is_dated else ""
        self.out = path / "out"
        self.checkpoints = path / "checkpoints"

    @classmethod
    def create(cls, command: str, name: str) -> "Run":
        """Make a new folder `<date>-<command>-<name>-<id>`. Raises UsageError for a bad or taken name."""
        _require_usable(name)
        taken = cls.named(name)
        if taken is not None and taken.name == name:
            done = taken.status == "finished"
            fix = f"`settle runs remove {name}` deletes it" if done else f"`settle resume {name}` goes on with it"
            raise UsageError(f"a run named {name!r} exists already", f"choose another --name; {fix}")
        if taken is not None:
            raise UsageError(f"{name!r} was the name of {taken.name!r}, and still leads to it", "choose another --name")
        date = datetime.date.today().isoformat()
        path = home() / "runs" / f"{date}-{command}-{name}-{secrets.token_hex(3)}"
        try:
            path.mkdir(parents=True)
            run = cls(path)
            run.out.mkdir()
            run.checkpoints.mkdir()
        except OSError as e:
            raise cannot_write(path, e, ELSEWHERE) from None
        return run

    @classmethod
    def all(cls) -> list["Run"]:
        """Every run, oldest first."""
        folder = home() / "runs"
        paths = [p for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
        return [cls(p) for p in sorted(paths, key=lambda p: (p.stat().st_mtime, p.name))]

    @classmethod
    def find(cls, name: str) -> "Run":
        """Return the newest run of that name (or folder name). Raises UsageError naming the runs there are."""
        run = cls.named(name)
        if run is not None:
            return run
        known = ", ".join(dict.fromkeys(r.name for r in reversed(cls.all())))
        raise UsageError(f"there is no run named {name!r}", f"known: {known}" if known else "start one: `settle train`")

    @classmethod
    def named(cls, name: str) -> "Run | None":
        """Return the newest run of that name (or folder name, or earlier name), or None."""
        runs = cls.all()[::-1]
        found = (run for run in runs if name in (run.name, run.path.name, str(run.path)))
        return next(found, None) or next((run for run in runs if name in run.earlier), None)

    def rename(self, name: str) -> "Run":
        """Give the run another name, at once and for good; its folder stays, and its earlier names lead to it.

        Raises UsageError for a name that is bad or another run's, RunError while a process works on it, ResourceError.
        """
        _require_usable(name)
        other = Run.named(name)
        if other is not None and other.path != self.path:
            raise UsageError(f"{name!r} is or was the name of another run, {other.path.name}", "choose another name")
        with self.lock():
            try:
                write_atomic(self.path / NAMES, "".join(f"{each}\n" for each in [*_later_names(self.path), name]))
                os.utime(self.path.parent)  # a server that knows the names of runs looks again
            except OSError as e:
                raise cannot_write(self.path, e, ELSEWHERE) from None
        return Run(self.path)

    def finish(self, made: Result) -> None:
        """Write result.json: its presence means that the run is finished."""
        write_json(self.path / "result.json", made.to_json())

    def result(self) -> Result | None:
        """Return the run's result; None while it is not finished. Raises RunError when a newer settle wrote it."""
        values = self.read("result.json")
        return None if values is None else parse_result(values, self.path / "result.json")


def present_names(text: str, runs: Sequence[Run] | None = None) -> str:
    """Return a model's name, such as `base:adapter`, with every earlier name of a run replaced by its present one.

    runs: all there are, read if None.
    """
    names = {earlier: run.name for run in (Run.all() if runs is None else runs) for earlier in run.earlier}
    return re.sub(r"[^:@]+", lambda part: names.get(part[0], part[0]), text) if names else text


def _require_usable(name: str) -> None:
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a usable name", "letters, digits, dot, dash and underscore, 64 at most")


def _later_names(path: Path) -> list[str]:
    """Return the names that a run was given after its first one; a line that is no name is passed over."""
    try:
        lines = (path / NAMES).read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return []
    return [line for line in lines if NAME.fullmatch(line)]


def free_name(wanted: str, taken: Collection[str] | None = None) -> str:
    """`wanted`, cleaned to a usable name, with -2, -3 … when taken; taken: names that are, those of runs if None."""
    name = re.sub(r"[^a-zA-Z0-9._-]+", "-", wanted).strip("-._")[:48] or "run"
    if taken is None:
        taken = {name for run in Run.all() for name in (run.name, *run.earlier)}
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def begun_work(events: Iterable[Event]) -> RunStarted | WorkStarted | None:
    """Return what a command reported first that it works on: later ones are of runs that the work starts itself."""
    return next((event for event in events if isinstance(event, RunStarted | WorkStarted)), None)


def has_begun(events: Iterable[Event]) -> bool:
    """Return whether the work of a command has begun.

    A run has its plan by then, or has prepared its data for longer than it takes to find what is wrong with them.
    """
    match begun_work(events):
        case RunStarted() as run:
            return Run(Path(run.path)).has_begun or time.time() - run.time > FAILS_SOON_SECONDS
        case first:
            return first is not None
