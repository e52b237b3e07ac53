"""Reads ledgers: who connected to where, what of it was declared, and what can be said of it all in one sentence."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import psutil

from settle.audit import LEDGER_FOLDER, OBSERVED, PROVED
from settle.audit.reach import DNS, Line, Names, Reach, scope_of
from settle.base.errors import RunError, UsageError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady, Say
from settle.base.files import home, parse_json
from settle.base.run import Run
from settle.base.words.amounts import when

HERE = ("loopback", "own", "unix", "local")  # scopes that are this machine
_ORDER = (OBSERVED, "watched", PROVED)


@dataclass(frozen=True)
class Connection:
    """One address that one process reached, or tried to.

    time: of the first connection; count: how many; site: file:line of Python; host: the name that was resolved, where
    it is known; guessed: that name may have been for another connection.
    """

    time: float
    pid: int
    program: str
    call: str
    address: str
    port: int | None
    scope: str
    host: str
    site: str
    count: int
    declared: bool
    guessed: bool = False

    @property
    def is_here(self) -> bool:
        return self.scope in HERE

    @property
    def target(self) -> str:
        place = self.address if self.port is None else f"{self.address}:{self.port}"
        return f"{self.shown_host} ({place})" if self.host and self.host != self.address else place

    @property
    def shown_host(self) -> str:
        return f"perhaps {self.host}" if self.guessed else self.host


@dataclass
class Ledger:
    """All sessions of a run.

    gaps: why it is not complete. denied: calls that were refused. is_closed: repeats are counted, which is done at the
    end of a session.
    """

    level: str = ""
    why: str = ""
    reaches: list[Reach] = field(default_factory=list)
    processes: dict[tuple[int, str], str] = field(default_factory=dict)
    connections: list[Connection] = field(default_factory=list)
    denied: list[str] = field(default_factory=list)
    listens: list[str] = field(default_factory=list)
    doors: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    is_closed: bool = True

    @property
    def beyond(self) -> list[Connection]:
        return [c for c in self.connections if not c.is_here]

    @property
    def undeclared(self) -> list[Connection]:
        return [c for c in self.beyond if not c.declared]

    @property
    def reached(self) -> list[Connection]:
        """Connections beyond this machine, where these were possible."""
        return self.beyond if self.level != PROVED else []

    @property
    def sentence(self) -> str:
        """What is known, and how completely."""
        return f"{self._finding()}; {self._completeness()}."

    def to_json(self) -> dict[str, object]:
        """For result.json."""
        return {
            "level": self.level,
            "sentence": self.sentence,
            "why": self.why,
            "processes": len(self.processes),
            "here": sum(c.count for c in self.connections if c.is_here),
            "beyond": [_shown(c) for c in self.beyond],
            "listens": self.listens,
            "denied": self.denied,
            "gaps": self.gaps,
        }

    def _finding(self) -> str:
        listens = f", but it listened on {', '.join(self.listens)}, where others could connect" if self.listens else ""
        if self.level == PROVED:
            tries = f" ({len(self.beyond)} attempts failed)" if self.beyond else ""
            doors = f" but answers to its own programs, on {', '.join(self.doors)}" if self.doors else ""
            return f"Nothing could leave this machine{doors}{tries}"
        if self.undeclared:
            names = ", ".join(dict.fromkeys(f"{c.target} by {Path(c.program).name}" for c in self.undeclared[:4]))
            more = f" and {len(self.undeclared) - 4} more" if len(self.undeclared) > 4 else ""
            return f"Undeclared connections: {names}{more}{listens}"
        if self.beyond:
            targets = ", ".join(dict.fromkeys(c.target for c in self.beyond))
            sure = "" if not any(c.guessed for c in self.beyond) else ", as far as native code shows names"
            return f"Only declared connections{sure}: {targets}{listens}"
        if self.level == OBSERVED:
            return f"Python opened no connection beyond this machine{listens}"
        if self.gaps:
            return f"No connection beyond this machine was recorded{listens}"
        return f"Nothing left this machine{listens}"

    def _completeness(self) -> str:
        here = sum(c.count for c in self.connections if c.scope in ("loopback", "own"))
        processes = f"{len(self.processes)} process{'es' if len(self.processes) != 1 else ''}"
        counted = processes + (f", {here:,} loopback connection{'s' if here != 1 else ''}" if self.is_closed else "")
        level = {
            OBSERVED: "observed only: no native code, no other programs",
            PROVED: f"proved: it ran in an empty network namespace, {counted}",
        }.get(self.level, f"{self.level}, {counted}")
        return f"{level}; incomplete: {', '.join(self.gaps)}" if self.gaps else level


def read_ledger(run: Path, is_running: bool = False) -> Ledger | None:
    """Read the ledger of a run's folder; None where it has none. is_running: the last session has not ended yet."""
    paths = sorted((run / LEDGER_FOLDER).glob("*.jsonl"))
    return read_sessions(paths, is_running) if paths else None


def read_sessions(paths: Iterable[Path], is_running: bool = False) -> Ledger:
    """Read several files as one ledger, at the level of the least complete. Raises OSError."""
    ledger, sessions = Ledger(is_closed=not is_running), [_lines(path) for path in paths]
    for at, lines in enumerate(sessions):
        _add(ledger, lines, is_running and at == len(sessions) - 1)
    return ledger


def _add(ledger: Ledger, lines: list[Line], is_running: bool) -> None:
    opened = _first(lines, "opened")
    level = opened.get("level", OBSERVED)
    if opened.get("version") == 1:  # it took every port 53 for a name server's
        lines = [{**line, "scope": "resolver"} if line.get("port") == DNS else line for line in lines]
    if not ledger.level or _ORDER.index(level) < _ORDER.index(ledger.level):
        ledger.level, ledger.why = level, opened.get("why", "")
    declared = [line for line in lines if line.get("kind") == "declared"]
    ledger.reaches += [Reach(line["host"], line["why"], line.get("module") or "") for line in declared]
    session = _Session(lines, level, ledger.reaches)
    ledger.processes |= session.processes
    ledger.connections += session.connections
    for line in lines:
        match line.get("kind"):
            case "denied":
                ledger.denied.append(f"{line.get('call')} by process {line.get('pid')}")
            case "listen":
                port = line.get("port")
                ledger.listens.append(f"{line.get('address')}{'' if port is None else f':{port}'}")
            case "door":
                ledger.doors.append(line["address"])
            case "gap" | "unreadable":
                ledger.gaps.append(line["why"])
            case "lost":
                ledger.gaps.append(f"{line.get('count')} lines found no room on the disk")
    if _first(lines, "closed"):
        return
    if is_running or psutil.pid_exists(opened.get("pid", -1)):
        ledger.is_closed = False
    else:
        ledger.gaps.append("a session was cut off before its end")


class _Session:
    """What the lines of one file say together."""

    def __init__(self, lines: list[Line], level: str, reaches: list[Reach]) -> None:
        self.processes: dict[tuple[int, str], str] = {}
        self._programs: dict[int, tuple[str, str]] = {}  # and its module, by process
        self._names, self._reaches = Names(), reaches
        for line in lines:
            self._names.add(line)
        counts = {_key(line): line["count"] for line in _first(lines, "closed").get("repeats", ())}
        kind = "connect" if level != OBSERVED else "site"
        found: dict[object, Connection] = {}
        for line in lines:
            if line.get("kind") == "process":
                self._programs[line["pid"]] = program, module = line["program"], line.get("module") or ""
                self.processes[line["pid"], program] = module
            elif line.get("kind") in (kind, "socket"):
                made = self._connection(line, counts)
                found.setdefault((made.pid, made.program, made.call, made.target), made)
        self.connections = list(found.values())

    def _connection(self, line: Line, counts: Mapping[tuple[object, ...], int]) -> Connection:
        address = line.get("address", line.get("family", ""))
        program, module = self._programs.get(line["pid"], ("", ""))
        names, port = self._names.of(line), line.get("port")
        return Connection(
            time=line.get("time", 0.0),
            pid=line["pid"],
            program=program,
            call=line.get("call", "socket"),
            address=address,
            port=port if isinstance(port, int) else None,
            scope=line.get("scope") or scope_of(address),
            host=names[0] if names else "",
            site=self._names.site(line).get("site", ""),
            count=counts.get(_key({**line, "program": program}), 1),
            declared=self._names.is_declared(line, self._reaches, module),
            guessed=self._names.is_guess(line),
        )


def _first(lines: Iterable[Line], kind: str) -> Line:
    return next((line for line in lines if line.get("kind") == kind), Line())


def _key(line: Line) -> tuple[object, ...]:
    return line.get("pid"), line.get("program"), line.get("call"), line.get("address"), line.get("port")


def _shown(connection: Connection) -> dict[str, object]:
    values = asdict(connection).items()
    return {key: value for key, value in values if value not in (None, "") and (key != "guessed" or value)}


def _lines(path: Path) -> list[Line]:
    """Return the lines that are whole."""
    found: list[Line] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            found.append(cast(Line, line))
    return found


COLUMNS = ("time", "process", "program", "call site", "host", "address", "port", "count", "declared")
MOST_LISTED = 40
MOST_READ = 400  # ledgers that the overview is about
_DATED = "[0-9]" * 4 + "-[0-9][0-9]" * 2 + "T[0-9][0-9]" + "-[0-9][0-9]" * 2 + "-*"  # names that settle gives


def show_ledger(subject: str, events: Events) -> None:
    """Show the connections of a run, of the newest command of that name, or of a ledger by its file's stem.

    Raises UsageError without a ledger.
    """
    run = Run.named(subject)
    if run is not None:
        found = read_ledger(run.path, is_running=run.status == "running")
        if found is None:
            raise UsageError(f"{run.name} has no ledger", "it was made before settle kept one")
        title = run.name
    else:
        paths = [path for path in _ledgers() if subject in (path.stem, command_of(path.stem))]
        if not paths:
            raise UsageError(f"no run and no ledger is named {subject!r}", "`settle runs audit` lists the ledgers")
        found, title = read_sessions(paths[-1:]), paths[-1].stem
    events.emit(Listing(title=title, columns=COLUMNS, rows=[_row(c) for c in found.connections]))
    for note in _notes(found):
        events.emit(Say(text=note))
    events.emit(ResultReady(result={"audit": found.to_json()}))


@dataclass(frozen=True)
class Overview:
    """The newest ledgers by their names, the newest first."""

    ledgers: Mapping[str, Ledger]

    @property
    def exceptions(self) -> list[str]:
        """The newest names of those that reached or awaited other machines, or are not complete."""
        return [name for name, x in self.ledgers.items() if x.reached or x.listens or x.gaps][:MOST_LISTED]

    @property
    def sentence(self) -> str:
        """Whether anything left this machine, and how completely that is known."""
        every = list(self.ledgers.values())
        if not every:
            return "No command has left a ledger yet."
        of = f"{len(every):,} command{'s' if len(every) != 1 else ''} since {when(began_at([*self.ledgers][-1]))}"
        observed = sum(x.level == OBSERVED for x in every)
        if undeclared := sum(bool(x.undeclared) for x in every):
            found = f"{undeclared:,} of {of} made undeclared connections"
        elif reached := sum(bool(x.reached) for x in every):
            found = f"{reached:,} of {of} reached other machines, as declared"
        elif observed:
            found = f"No connection beyond this machine was recorded in {of}"
        else:
            found = f"Nothing left this machine in {of}"
        return found + (f"; of {observed:,} only Python's sockets were observed." if observed else ".")


def overview_of_ledgers() -> Overview:
    return Overview({path.stem: read_sessions([path]) for path in reversed(_ledgers()[-MOST_READ:])})


def list_ledgers(events: Events) -> None:
    """Say whether anything left this machine, and list the newest ledgers that are exceptions."""
    overview = overview_of_ledgers()
    events.emit(Say(text=overview.sentence))
    listed = [
        {"ledger": name, "began": when(began_at(name)), "command": command_of(name), "sentence": x.sentence}
        for name, x in overview.ledgers.items()
    ]
    exceptions = set(overview.exceptions)
    rows = [(x["began"], x["command"], x["sentence"]) for x in listed if x["ledger"] in exceptions]
    if rows:
        hint = "`settle runs audit RUN` shows every connection"
        events.emit(Listing(columns=("began", "command", "what left this machine"), rows=rows, note=hint))
    events.emit(ResultReady(result={"sentence": overview.sentence, "ledgers": listed}))


def _row(c: Connection) -> tuple[object, ...]:
    declared = "" if c.is_here else "yes" if c.declared else "NO"
    began = time.strftime("%H:%M:%S", time.localtime(c.time))
    program = Path(c.program).name
    port = "" if c.port is None else str(c.port)
    return began, str(c.pid), program, c.site, c.shown_host, c.address, port, c.count, declared


def _notes(found: Ledger) -> list[str]:
    notes = [f"declared: {reach.host} ({reach.why})" for reach in found.reaches]
    notes += [f"refused: {what}" for what in found.denied]
    notes += [f"native code and other programs are not in this ledger: {found.why}"] * (found.level == OBSERVED)
    return [*notes, found.sentence]


def _ledgers() -> list[Path]:
    return sorted((home() / "ledgers").glob(f"{_DATED}.jsonl"))


def began_at(ledger: str) -> float:
    """2026-11-28T11-02-13-serve-4711-ab12 → its time in epoch seconds."""
    return time.mktime(time.strptime(ledger[:19], "%Y-%m-%dT%H-%M-%S"))


def command_of(ledger: str) -> str:
    """2026-11-28T11-02-13-serve-4711-ab12 → serve."""
    return ledger[20:].rsplit("-", 2)[0]


CLOCK_SECONDS = 2.0  # that two readings of a time may differ: ids of processes are used again


def worker_of(run: Run) -> psutil.Process | None:
    """Return the process that opened the latest ledger of the run, while it lives."""
    folder = run.path / LEDGER_FOLDER
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
    for path in reversed(files):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, psutil.Error), path.open("rb") as f:
            opened = parse_json(f.readline())
            process = psutil.Process(int(opened["pid"]))
            if process.create_time() <= float(opened["time"]) + CLOCK_SECONDS and process.is_running():
                return process
    return None


def stop(run: Run) -> None:
    """Ask the process that works on a run to stop: in the loop it saves a checkpoint first. Raises RunError."""
    worker = worker_of(run) if run.status == "running" else None
    if worker is None or os.name == "nt":
        raise RunError(f"the process that works on {run.name!r} is not known", "press Ctrl-C in its terminal")
    worker.send_signal(signal.SIGINT)
