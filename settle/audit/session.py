"""The ledger of this process: opened when a command begins, at the best level that there is here."""

import contextlib
import ctypes
import errno
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from settle.audit import system_calls
from settle.audit.audit_hook import Hook, Line
from settle.audit.reach import Reach, is_declared
from settle.base.event_log import Events
from settle.base.events import UndeclaredConnection, Warn
from settle.base.files import home
from settle.base.version import __version__

VERSION = 1  # of the lines of a ledger
PROVED, WATCHED, OBSERVED = "proved", "watched", "observed"
FOLDER = "audit"  # in the folder of a run
MOST_KEPT = 200  # ledgers in settle's home; those of runs lie with them
READY_SECONDS = 20.0  # for the watching process to start


class NotWatchedError(Exception):
    """Why the calls of this process cannot be watched: as what follows "since"."""


class Session:
    """One ledger file. on_undeclared: called, from another thread, with each connection that nobody declared."""

    def __init__(self, command: str, reaches: Sequence[Reach]) -> None:
        self.reaches = list(reaches)
        self.on_undeclared: Callable[[Line], None] = lambda line: None
        self.level, self.why = OBSERVED, ""
        folder = home() / "ledgers"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _prune(folder)
        name = f"{time.strftime('%Y-%m-%dT%H-%M-%S')}-{command}-{os.getpid()}-{secrets.token_hex(2)}.jsonl"
        self.path = folder / name
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._command = command
        self._hosts: dict[tuple[object, object], str] = {}
        self._is_lossy = False

    def start(self, watches: bool) -> None:
        """Opens the ledger. watches: this process is the command's own, and may be watched from now on."""
        if watches:
            try:
                self._watch()
                self.level = WATCHED
            except NotWatchedError as e:
                self.why = str(e)
        else:
            self.why = "a library must not put a filter on the process that uses it"
        self.write({"kind": "opened", "version": VERSION, "settle": __version__, "command": self._command,
                    "pid": os.getpid(), "level": self.level, "why": self.why})  # fmt: skip
        for reach in self.reaches:
            self._write_reach(reach)
        self._hook = Hook(self._see)

    def declare(self, reach: Reach) -> None:
        """Say what will be reached, before it is."""
        if reach not in self.reaches:
            self.reaches.append(reach)
            self._write_reach(reach)

    def put_into(self, run: Path) -> None:
        """The ledger is in the run's folder, too: the same file, or a link where the disk knows no second name."""
        folder = run / FOLDER
        folder.mkdir(exist_ok=True)
        place = folder / self.path.name
        if not place.exists():
            try:
                os.link(self.path, place)
            except OSError:
                place.symlink_to(self.path)

    def write(self, line: Line) -> None:
        """One line. A full disk loses it, and the ledger says so once there is room."""
        try:
            if self._is_lossy:
                os.write(self._fd, _encoded({"kind": "lost", "count": 1}))
                self._is_lossy = False
            os.write(self._fd, _encoded(line))
        except OSError:
            self._is_lossy = True

    def close(self) -> None:
        """The command has ended; who watches it writes the last line."""
        self._hook.write = None
        if self.level == OBSERVED:
            self.write({"kind": "closed"})

    def _write_reach(self, reach: Reach) -> None:
        self.write({"kind": "declared", "host": reach.host, "why": reach.why})

    def _see(self, line: Line) -> None:
        """What Python's hook saw."""
        if line["kind"] == "site" and line["host"]:
            self._hosts[line["address"], line["port"]] = str(line["host"])
        self.write(line)

    def _watch(self) -> None:
        """Starts the process that watches, and puts the filter on this one. Raises NotWatchedError, before that."""
        abi = system_calls.native_abi()
        if abi is None:
            raise NotWatchedError(f"{sys.platform} has no notifications of network calls")
        if system_calls.num_threads() > 1:
            raise NotWatchedError("threads of this process were running before")
        try:
            sizes = system_calls.notification_sizes(abi)
        except OSError:
            raise NotWatchedError("this kernel or container has no notifications of network calls") from None
        ours, theirs = socket.socketpair()
        heard, alarm = os.pipe()
        with contextlib.ExitStack() as closing:
            closing.callback(ours.close)
            watcher = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(__file__).with_name("watcher_child.py")),
                 *map(str, (theirs.fileno(), self._fd, alarm))],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self._fd, alarm), start_new_session=True,
            )  # fmt: skip
            theirs.close()
            os.close(alarm)
            system_calls.allow_reader(watcher.pid)
            probe = ctypes.create_string_buffer(secrets.token_hex(8).encode(), 16)
            task = {"calls": abi.calls, "arch": abi.audit_arch, "sizes": sizes, "is_fenced": False,
                    "pid": os.getpid(), "probe": probe.raw.decode(), "probe_at": ctypes.addressof(probe)}  # fmt: skip
            ours.settimeout(READY_SECONDS)
            try:
                ours.sendall(json.dumps(task).encode())
                if ours.recv(8) != b"yes":
                    raise NotWatchedError("no process may read another one's memory here")
                _hand_over(abi, ours)
                ours.recv(16)
            except OSError as e:
                os.close(heard)
                reason = "another filter watches this process" if e.errno == errno.EBUSY else str(e)
                raise NotWatchedError(reason) from None
            except NotWatchedError:
                os.close(heard)
                raise
        watcher.returncode = 0  # it outlives us: nobody waits for it
        threading.Thread(target=self._listen, args=(heard,), name="audit", daemon=True).start()

    def _listen(self, heard: int) -> None:
        """Reads what goes beyond this machine, and passes on what was not declared."""
        with os.fdopen(heard, "rb") as lines:
            for text in lines:
                line: Line = json.loads(text)
                names = [str(line.get("name") or ""), str(line.get("address") or "")]
                names += [self._hosts.get((line.get("address"), line.get("port")), "")]
                if not is_declared(self.reaches, names):
                    self.on_undeclared({**line, "host": names[2] or names[0]})


def _hand_over(abi: system_calls.Abi, channel: socket.socket) -> None:
    """Puts the filter on this thread and sends its descriptor to the watcher. Raises OSError.

    A second thread sends it: the call is one that the filter holds back until somebody watches.
    """
    fd, is_set = -1, threading.Event()

    def send() -> None:
        is_set.wait()
        if fd >= 0:
            socket.send_fds(channel, [b"f"], [fd])

    sender = threading.Thread(target=send)
    sender.start()
    try:
        fd = system_calls.install_filter(abi, system_calls.filter_program(abi, False))
    finally:
        is_set.set()
        sender.join()
        if fd >= 0:
            os.close(fd)


def _encoded(line: Line) -> bytes:
    return json.dumps({"time": round(time.time(), 3), **line}).encode() + b"\n"


def _prune(folder: Path) -> None:
    for path in sorted(folder.glob("*.jsonl"))[:-MOST_KEPT]:
        path.unlink(missing_ok=True)


_current: Session | None = None
_is_command_line = False


def from_command_line() -> None:
    """This process is settle's own, from its start to its end: it may be watched."""
    global _is_command_line
    _is_command_line = True


def current() -> Session | None:
    """The ledger that is open now."""
    return _current


@contextlib.contextmanager
def ledger(command: str, reaches: Sequence[Reach] = ()) -> Iterator[Session]:
    """The ledger of all that is done meanwhile: the one that is open already, or a new one. Raises OSError."""
    global _current
    if _current is not None:
        yield _current
        return
    opened = Session(command, reaches)
    opened.start(_is_command_line)
    _current = opened
    try:
        yield opened
    finally:
        _current = None
        opened.close()


@contextlib.contextmanager
def ledger_of(command: "Watchable", events: Events) -> Iterator[None]:
    """The ledger of a command of the command line; an undeclared connection becomes an event at once."""
    if not command.is_watched:
        yield
        return
    try:
        opening = ledger(command.part_name(), command.reaches())
        opened = opening.__enter__()
    except OSError as e:
        events.emit(Warn(text=f"no ledger of this command's connections can be written: {e.strerror}"))
        yield
        return
    with contextlib.ExitStack() as closing:
        closing.push(opening)
        opened.on_undeclared = lambda line: events.emit(UndeclaredConnection.model_validate(line))
        yield


class Watchable(Protocol):
    """What a command says of itself."""

    @property
    def is_watched(self) -> bool: ...

    @classmethod
    def part_name(cls) -> str: ...

    def reaches(self) -> Sequence[Reach]: ...
