"""A child process for work on what nobody vouches for: it cannot take the memory, the time or the life of its parent.

The child answers one line of JSON with another. It limits its own address space and its processor time for each
request; the parent ends it when a request takes too long on the clock, or when an answer is too large, and starts
another one for the next request. It ends with its parent. Where the system keeps no limit on memory or processor time
(memory on macOS, both on Windows), the clock is what bounds it.
"""

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import astuple, dataclass

from settle.base.child.line_child import LineChild
from settle.base.child.python_command import module_command

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
