"""The ledger of this process: opened when a command begins, at the best level that there is here."""

import contextlib
import functools
import json
import os
import secrets
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from settle.audit import LEDGER_FOLDER, OBSERVED, PROVED, WATCHED
from settle.audit.audit_hook import Hook
from settle.audit.door import open_door
from settle.audit.ledger import read_ledger
from settle.audit.reach import Line, Names, Reach, scope_of
from settle.audit.socket_facts import SocketFacts, internet, is_local, own_sockets
from settle.audit.system_calls import num_threads
from settle.audit.watcher import NotWatchedError, watch_this_process
from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import Say, UndeclaredConnection, Warn
from settle.base.files import home
from settle.base.python_command import module_command
from settle.base.version import __version__

VERSION = 2  # of the lines of a ledger

MOST_KEPT = 200  # ledgers in settle's home; those of runs lie with them


class Session:
    """One ledger file.

    on_undeclared: called, from another thread, with each undeclared connection. listens: addresses that it may listen
    on.
    """

    def __init__(self, command: str, reaches: Sequence[Reach]) -> None:
        self.reaches = list(reaches)
        self.on_undeclared: Callable[[Line], None] = lambda line: None
        self.listens: set[str] = set()
        self.level, self.why = OBSERVED, ""
        folder = home() / "ledgers"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _prune(folder)
        name = f"{time.strftime('%Y-%m-%dT%H-%M-%S')}-{command}-{os.getpid()}-{secrets.token_hex(2)}.jsonl"
        self.path = folder / name
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._command = command
        self._names = Names()
        self._is_lossy = False

    def start(self, watches: bool, offline: bool) -> None:
        """Open the ledger.

        watches: this process is the command's own, and may be watched from now on. offline: it has no network from now
        on. Raises UsageError where that cannot be ensured.
        """
        before = own_sockets() if watches else {}
        try:
            if offline:
                _leave_sockets(before)
            self._watch(watches, offline)
            self.level = PROVED if offline else WATCHED
        except NotWatchedError as e:
            self.why = str(e)
        if offline and self.level != PROVED:
            self._discard()
            raise UsageError(
                f"--offline cannot be proved here: {self.why}",
                "leave --offline out: what connects is then reported, and not prevented",
            )
        self.write({"kind": "opened", "version": VERSION, "settle": __version__, "command": self._command,
                    "pid": os.getpid(), "level": self.level, "why": self.why})  # fmt: skip
        for reach in self.reaches:
            self._write_reach(reach)
        for number, facts in before.items():
            self._write_socket(number, facts)
        _hook().open(self._see)

    def declare(self, reach: Reach) -> None:
        """Say what will be reached, before it is."""
        if reach not in self.reaches:
            self.reaches.append(reach)
            self._write_reach(reach)

    def put_into(self, run: Path) -> None:
        """Put the ledger into the run's folder, too: the same file, or a link where the disk knows no second name."""
        folder = run / LEDGER_FOLDER
        folder.mkdir(exist_ok=True)
        place = folder / self.path.name
        if not place.exists():
            try:
                os.link(self.path, place)
            except OSError:
                with contextlib.suppress(OSError):  # no links on this disk, or for this user: it is in audit/
                    place.symlink_to(self.path)

    def write(self, line: Line) -> None:
        """One line. A full disk loses it, and the ledger says so once there is room."""
        lost = b"\n" + _encoded({"kind": "lost", "count": 1}) if self._is_lossy else b""  # ends what was half written
        data = lost + _encoded(line)
        try:
            self._is_lossy = os.write(self._fd, data) < len(data)
        except OSError:
            self._is_lossy = True

    def close(self) -> None:
        """End the ledger of the command; who watches it writes the last line."""
        _hook().close()
        if self.level == OBSERVED:
            self.write({"kind": "closed"})
            fd, self._fd = self._fd, -1  # what another thread still writes is lost
            os.close(fd)

    def _write_reach(self, reach: Reach) -> None:
        self.write({"kind": "declared", "host": reach.host, "why": reach.why, "module": reach.module})

    def _write_socket(self, number: int, facts: SocketFacts) -> None:
        """One that was there before: what is sent on it is not seen."""
        call = f"socket {number}, which was there before,"
        line: Line = {"call": call, "pid": os.getpid()}
        if self.level == PROVED:
            if _leads_out(number, facts):
                self.write({**line, "kind": "denied"})
        elif isinstance(facts.peer, tuple):
            address = internet(*facts.peer)
            line |= {"kind": "connect" if self.level == WATCHED else "site", "call": "open before"}
            self._tell({**line, **address}, address["scope"] == "beyond")
        elif facts.is_listening and isinstance(facts.bound, tuple) and not is_local(address := internet(*facts.bound)):
            self._tell({**line, **address, "kind": "listen"}, True)

    def _tell(self, line: Line, is_alarm: bool) -> None:
        self.write(line)
        if is_alarm:
            self._judge(line)

    def _see(self, line: Line) -> None:
        """Record what Python's hook saw."""
        self._names.add(line)
        self.write(line)
        if self.level == OBSERVED and line["kind"] == "site" and scope_of(line["address"]) == "beyond":
            self._judge(line)

    def _watch(self, watches: bool, offline: bool) -> None:
        """Watch this process. Raises NotWatchedError, with nothing changed unless the network is gone already."""
        if not watches:
            raise NotWatchedError("a library must not put a filter on the process that uses it")
        heard = watch_this_process(self._fd, offline)
        threading.Thread(target=self._listen, args=(heard,), name="audit", daemon=True).start()

    def _discard(self) -> None:
        os.close(self._fd)
        self.path.unlink(missing_ok=True)

    def _listen(self, heard: int) -> None:
        """Read what goes beyond this machine, and pass on what was not declared."""
        with os.fdopen(heard, "rb") as lines:
            for text in lines:
                line: Line = json.loads(text)
                self._names.add(line)
                self._judge(line)

    def _judge(self, line: Line) -> None:
        """Pass a line on if nobody declared its connection."""
        if line["kind"] == "listen" and line.get("address") in self.listens:
            return
        names = self._names.of(line)
        if not self._names.is_declared(line, self.reaches, line.get("module") or ""):
            self.on_undeclared({**line, "host": names[0] if names else ""})


def _leads_out(number: int, facts: SocketFacts) -> bool:
    """Return whether a socket that existed before could lead out of an empty network.

    Standard streams may be a terminal's, and a door has been opened on purpose.
    """
    return number > 2 and (facts.is_handed_down or isinstance(facts.peer, tuple))


def _leave_sockets(before: Mapping[int, SocketFacts]) -> None:
    """Close what could lead out of an empty network. Raises NotWatchedError where output itself does."""
    for number, facts in before.items():
        if _leads_out(number, facts):
            os.close(number)
        elif isinstance(facts.peer, tuple) and internet(*facts.peer)["scope"] == "beyond":
            raise NotWatchedError(f"descriptor {number} is a connection to {facts.peer[0]}, where output would go")


def _encoded(line: Line) -> bytes:
    return json.dumps({"time": round(time.time(), 3), **line}).encode() + b"\n"


@functools.cache
def _hook() -> Hook:
    """Return the hook of this process: an audit hook cannot be removed."""
    return Hook()


def _prune(folder: Path) -> None:
    for path in sorted(folder.glob("*.jsonl"))[:-MOST_KEPT]:
        path.unlink(missing_ok=True)


_current: Session | None = None
_is_command_line = False


def from_command_line(offline: bool) -> None:
    """Mark this process as settle's own, from its start to its end: it may be watched.

    offline: libraries that are loaded later need not try to connect.
    """
    global _is_command_line
    _is_command_line = True
    if offline:
        os.environ |= {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"}


def is_fenced() -> bool:
    """Return whether this process has no network but a loopback of its own."""
    return _current is not None and _current.level == PROVED


def declare(host: str, why: str, module: str = "") -> None:
    """Say what will be connected to, before it is: see `Reach`. Without an open ledger there is nobody to tell."""
    if _current is not None and (host or module):
        _current.declare(Reach(host, why, module))


def network_record(folder: Path, events: Events) -> dict[str, object]:
    """Return what was reached in all sessions of the work in that folder, for result.json, and emit its sentence.

    It is {} where there is no ledger.
    """
    found = read_ledger(folder, is_running=True)
    if found is None:
        return {}
    events.emit(Say(text=found.sentence))
    return found.to_json()


def declared() -> list[dict[str, str]]:
    """Return what may be reached beyond this machine, for plan.json; [] for nothing."""
    reaches = _current.reaches if _current is not None else []
    return [{"host": reach.host or f"any, by {reach.module}", "why": reach.why} for reach in reaches]


def declare_proxies() -> None:
    """Declare the user's own proxies, which connections beyond this machine may go through."""
    for address in urllib.request.getproxies().values():
        declare(urllib.parse.urlsplit(address).hostname or "", "the proxy of your settings")


@contextlib.contextmanager
def ledger(command: str, reaches: Sequence[Reach] = (), offline: bool = False) -> Iterator[Session]:
    """Keep the ledger of all that is done meanwhile: the open one, or a new one.

    Raises OSError, and UsageError where `offline` cannot be proved.
    """
    global _current
    if _current is not None:
        yield _current
        return
    opened = Session(command, reaches)
    opened.start(_is_command_line, offline)
    _current = opened
    try:
        yield opened
    finally:
        _current = None
        opened.close()


@contextlib.contextmanager
def ledger_of(command: "Watchable", events: Events, offline: bool) -> Iterator[None]:
    """Keep the ledger of a command of the command line; an undeclared connection becomes an event at once.

    Raises UsageError where `offline` cannot be proved.
    """
    if not command.is_watched and not offline:
        yield
        return
    door, doors = command.door(), list[str]()
    if offline and _is_command_line:
        _restart_without_threads()
        doors = [open_door(*door)] if door else []
    try:
        opening = ledger(command.part_name(), command.reaches(), offline)
        opened = opening.__enter__()
    except OSError as e:
        if offline:
            raise
        events.emit(Warn(text=f"no ledger of this command's connections can be written: {e.strerror}"))
        yield
        return
    with contextlib.ExitStack() as closing:
        closing.push(opening)
        opened.listens = {door[0]} if door else set()
        for address in doors:
            opened.write({"kind": "door", "address": address})
        opened.on_undeclared = lambda line: events.emit(_undeclared(line, offline))
        yield


def _undeclared(line: Line, prevented: bool) -> UndeclaredConnection:
    port = line.get("port")
    return UndeclaredConnection(
        pid=line["pid"],
        call=line.get("call") or line["kind"],
        address=line.get("address") or line.get("family") or "",
        port=port if isinstance(port, int) else None,
        host=line.get("host") or "",
        prevented=prevented,
    )


def _restart_without_threads() -> None:
    """Threads that a library of matrix products starts when it is loaded are in the way of an empty network."""
    if num_threads() > 1 and "OPENBLAS_NUM_THREADS" not in os.environ:
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        command = module_command("settle", *sys.argv[1:])
        os.execv(command[0], command)


class Watchable(Protocol):
    """What a command says of itself."""

    @property
    def is_watched(self) -> bool: ...

    @classmethod
    def part_name(cls) -> str: ...

    def reaches(self) -> Sequence[Reach]: ...

    def door(self) -> tuple[str, int] | None: ...
