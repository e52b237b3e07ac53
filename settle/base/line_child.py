"""Child processes of ours that answer lines: ended when an answer takes too long, or fenced in with limits.

A `FencedChild` works on what nobody vouches for: it cannot take the memory, the time or the life of its parent. It
limits its own address space and its processor time for each request; the parent ends it when a request takes too long
on the clock, or when an answer is too large, and starts another one for the next request. Where the system keeps no
limit on memory or processor time (memory on macOS, both on Windows), the clock is what bounds it.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator, Sequence
from dataclasses import astuple, dataclass
from typing import IO

from settle.base.python_command import NEW_GROUP, module_command


class LineChild:
    """A process that is started by the first request, and by the next one after it has ended.

    It is in a process group of its own, because Ctrl-C is for its parent, and ends with that at the latest. One thread
    at a time may ask it; any may close it.
    """

    def __init__(
        self, command: Sequence[str], start_seconds: float = 0.0, errors: int | IO[bytes] = subprocess.DEVNULL
    ) -> None:
        self._command, self._errors = command, errors
        self._start_seconds = start_seconds  # that the request which starts it may take beside its own
        self._process: subprocess.Popen[bytes] | None = None
        self._is_over = False
        self._lock = threading.Lock()
        self.is_late = False  # whether the latest request took too long
        _LIVING.add(self)

    def ask(self, request: bytes, seconds: float | None = None, most: int = -1) -> bytes:
        """Return the line that answers a request, or what there is of it where the process ends: see `lines`."""
        with contextlib.closing(self.lines(request, seconds, most)) as lines:
            return next(lines, b"")

    def lines(self, request: bytes, seconds: float | None = None, most: int = -1) -> Generator[bytes, None, None]:
        """Send a line and yield the lines that come back, until the process ends or no more is asked for.

        seconds: after which the process is killed. most: bytes of a line, the rest of which is the next one.
        """
        process, limit = self._started(seconds)
        if process is None or process.stdin is None or process.stdout is None:
            return
        self.is_late = False
        _WATCH.begin(self, process, limit)
        try:
            with contextlib.suppress(OSError, ValueError):  # it is dead, or was closed by another thread
                process.stdin.write(request + b"\n")
                process.stdin.flush()
                while line := process.stdout.readline(most):
                    yield line
        finally:
            _WATCH.end(self)

    def exit_code(self, seconds: float = 5.0) -> int | None:
        """Return how the process ended; None where it still runs after `seconds`, or was closed."""
        process = self._process
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(seconds)
        return None

    def close(self, is_over: bool = False) -> None:
        """End the process, also in the middle of a request. is_over: no request starts another one."""
        with self._lock:
            process, self._process = self._process, None
            self._is_over = self._is_over or is_over
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()

    def kill_late(self, process: "subprocess.Popen[bytes]") -> None:
        """Kill a process whose request takes too long."""
        self.is_late = True
        process.kill()

    def _started(self, seconds: float | None) -> "tuple[subprocess.Popen[bytes] | None, float | None]":
        """Return the process, and the seconds within which it must have answered."""
        if self._process is not None and self._process.poll() is not None:
            self.close()
        with self._lock:
            if self._process is None and not self._is_over:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    process_group=0,
                    creationflags=NEW_GROUP,
                )
                seconds = None if seconds is None else seconds + self._start_seconds
            return self._process, seconds


class _Watch:
    """One thread that kills the children whose time is over."""

    def __init__(self) -> None:
        self._ends: dict[LineChild, tuple[subprocess.Popen[bytes], float]] = {}
        self._changed = threading.Condition()
        self._wake: float | None = None  # when the thread looks again; None while there is none

    def begin(self, child: LineChild, process: "subprocess.Popen[bytes]", seconds: float | None) -> None:
        if seconds is None:
            return
        with self._changed:
            end = time.monotonic() + seconds
            self._ends[child] = process, end
            if self._wake is None:
                self._wake = end
                threading.Thread(target=self._run, name="late children", daemon=True).start()
            elif end < self._wake:
                self._changed.notify()

    def end(self, child: LineChild) -> None:
        with self._changed:
            self._ends.pop(child, None)

    def _run(self) -> None:
        with self._changed:
            while self._ends:
                self._wake = min(end for _, end in self._ends.values())
                self._changed.wait(self._wake - time.monotonic())
                for child, (process, end) in list(self._ends.items()):
                    if time.monotonic() >= end:
                        del self._ends[child]
                        child.kill_late(process)
            self._wake = None


_WATCH = _Watch()
_LIVING: "weakref.WeakSet[LineChild]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for child in list(_LIVING):
        child.close()


# --- a child with limits ---

START_SECONDS = 60.0  # for the process to start, beside what its first request may take
_GRACE_SECONDS = 5  # after the time in which the parent ends the child: for when the parent is gone itself


@dataclass(frozen=True)
class Limits:
    """What one request may take. memory: bytes of address space; cpu, wall: seconds; answer: bytes."""

    memory: int = 1 << 30
    cpu: float = 2.0
    wall: float = 30.0
    answer: int = 256 << 20


class ChildEnded(Exception):
    """The child ran into a limit, or crashed; says which, as what the work does: "it takes more than …"."""


class FencedChild:
    """A module of ours in a process of its own, started by the first request. Threads take turns.

    module: its name; it calls `answer_requests` when it is run.
    """

    def __init__(self, module: str, limits: Limits = Limits()) -> None:  # noqa: B008  frozen
        self._limits = limits
        self._child = LineChild(module_command(module, json.dumps(astuple(limits))), START_SECONDS)
        self._turn = threading.Lock()

    def ask(self, request: object) -> object:
        """Return the child's answer to a JSON value. Raises ChildEnded, and what `json.dumps` raises."""
        line, limits, child = json.dumps(request).encode("ascii"), self._limits, self._child
        with self._turn:
            answer = child.ask(line, limits.wall, limits.answer)
            if not answer.endswith(b"\n"):
                is_large = len(answer) >= limits.answer
                code = child.exit_code(0 if is_large else 5)
                child.close()
                raise ChildEnded("its answer is too large" if is_large else self._cause(code))
            kind, value = json.loads(answer.decode("utf-8", "surrogatepass"))
            if kind == "memory":
                child.close()
                raise ChildEnded(f"it takes more than {limits.memory >> 20} MiB of memory")
            return value

    def close(self) -> None:
        """End the process, also in the middle of a request; the next request starts another one."""
        self._child.close()

    def _cause(self, code: int | None) -> str:
        if self._child.is_late:
            return f"it takes more than {self._limits.wall:.0f} s"
        if code is not None and code == -getattr(signal, "SIGPROF", 0):
            return f"it takes more than {self._limits.cpu:g} s of processor time"
        return f"it ended its process ({signal.Signals(-code).name})" if code and code < 0 else "it ended its process"


def answer_requests(answer: Callable[[object], object]) -> None:
    """Answer each line of stdin until it ends, within the limits that this process was started with."""
    limits = Limits(*json.loads(sys.argv[1]))
    # what prints must not break the protocol
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _limit_process(limits)
    for line in sys.stdin.buffer:
        _limit_request(limits)
        try:
            written = json.dumps(["answer", answer(json.loads(line))], ensure_ascii=False)
            out.write(written.encode("utf-8", "surrogatepass") + b"\n")
        except MemoryError:
            out.write(b'["memory", null]\n')
            out.flush()
            os._exit(1)  # its heap is full of what is left of it
        out.flush()
        _limit_request(None)


def _limit_process(limits: Limits) -> None:
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        for name, value in (("AS", limits.memory), ("CORE", 0), ("FSIZE", 0)):
            with contextlib.suppress(ValueError, OSError):  # a lower limit is set already, or the system has none
                resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def _limit_request(limits: Limits | None) -> None:
    """Bounds the time of the next request; None: that of waiting for one, which takes none."""
    # both end the process even when C code holds the interpreter's lock
    if hasattr(signal, "alarm"):
        signal.alarm(int(limits.wall) + _GRACE_SECONDS if limits else 0)
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, limits.cpu if limits else 0)
