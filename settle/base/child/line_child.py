"""A process of ours that answers lines, and is ended when an answer takes too long."""

import atexit
import contextlib
import subprocess
import threading
import time
import weakref
from collections.abc import Generator, Sequence
from typing import IO


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
