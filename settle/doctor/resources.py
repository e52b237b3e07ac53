"""A model in llama.cpp as the user runs it: what it holds of the memory, what it reads from the disk, and its speed."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from settle.base.errors import EngineError
from settle.doctor.checks import Check
from settle.doctor.findings import D, Fix
from settle.doctor.known_answers import PROSE, SENTENCES
from settle.doctor.subject import ModelFile
from settle.doctor.trial import LEAST_RATIO, EngineSide, HeldSide, Item, Side, Trial
from settle.infer.child_process import Child, Load
from settle.machine import memory, read_from_disk, resident
from settle.plan.fit.model_shapes import NamedShape
from settle.plan.memory_model import served

WATCH_SECONDS = 0.005  # between two looks at the memory
ANSWERED = 4  # tokens, that show that it runs
SHORT = 512  # tokens of context where the user gives none
KEPT = 0.9  # of the room, that a context which is proposed takes at most
STEP = 256  # tokens, that a proposed context is a multiple of
WRITTEN = 12  # tokens of an answer whose reads are counted
PAIRS = 12  # of times
SPOKEN = 16  # tokens of an answer whose speed is measured
LEAST_SECONDS = 0.4  # of such a measurement
PRESSURE = Path("/proc/pressure/memory")


class ResourceCheck(Check[ModelFile, D]):
    """A resource that a model needs as the user runs it, measured in llama.cpp."""

    def shorter(self, subject: ModelFile, tokens: int) -> Fix:
        """Return the fix that asks for less context."""
        return Fix(f"ask for {tokens:,} tokens of context", f"settle chat {subject.name} --context {tokens}")

    def speed_trial(
        self, knob: str, before: Side, after: Side, seconds: float, preparing: float = 0.0, apart: bool = False
    ) -> Trial:
        """Return the A/B of two sides by the seconds that a token takes."""
        return Trial(
            knob=knob,
            before=before,
            after=after,
            measure="seconds for a token",
            unit="s",
            items=openings(0, PAIRS),
            others=openings(PAIRS, PAIRS),
            least=LEAST_RATIO,
            timed=True,
            seconds=seconds,
            preparing=preparing,
            apart=apart,
        )


def load_of(subject: ModelFile) -> Load:
    """Return the model as the user runs it."""
    model, running = subject.model, subject.running
    adapters = (model.adapter,) if model.adapter else ()
    return Load(model.weights, running.context or SHORT, adapters=adapters, threads=running.threads)


def room_of(subject: ModelFile) -> int:
    """Return the bytes that the model may take: what is free here, unless the user said how much."""
    return subject.running.room or memory().available


def needed_bytes(named: NamedShape, context: int) -> float:
    """Return what a file takes in the processor's memory with a context, by its shape."""
    return (named.bytes or 0) + held_bytes(named, context)


def held_bytes(named: NamedShape, context: int) -> float:
    """Return the part of it that stays in memory whatever happens; pages of the file can go, and be read again."""
    return served(named.shape, 0.0, context).total


def fitting_tokens(named: NamedShape, context: int, room: int) -> int:
    """Return the longest context up to `context` that fits into `room` bytes with something left; 0 for none."""
    tokens = context
    while tokens > STEP and needed_bytes(named, tokens) > KEPT * room:
        tokens = max(STEP, int(tokens * 0.9) // STEP * STEP)
    return tokens if needed_bytes(named, tokens) <= KEPT * room else 0


def peak_bytes(load: Load, room: int | None = None, prompt: str = "Once") -> int:
    """Return the most that llama.cpp held while it loaded the model and wrote a few tokens.

    It is ended as soon as that is more than `room`, so that nothing else on the machine runs short. Raises EngineError
    for another reason why it does not run.
    """
    child = Child(load)
    watch = _Watch(child, room)
    watch.start()
    try:
        child.start()
        child.post("/completion", {"prompt": prompt, "n_predict": ANSWERED, "temperature": 0})
    except EngineError:
        if not watch.is_over:
            raise
    finally:
        watch.ended.set()
        watch.join()
        child.close()
    return watch.peak


class FailedLoads(Side):
    """1 for an item with which the model does not run within `room` bytes of memory, 0 where it does. Each loads it."""

    def __init__(self, name: str, load: Load, room: int) -> None:
        self.name, self._load, self._room = name, load, room

    def measure(self, item: Item) -> float:
        return float(peak_bytes(self._load, self._room, str(item)) > self._room)


class _Watch(threading.Thread):
    """Looks at the memory of a child until it ends, and ends it when it holds more than `room`."""

    def __init__(self, child: Child, room: int | None) -> None:
        super().__init__(daemon=True)
        self._child, self._room, self.peak, self.ended = child, room, 0, threading.Event()

    @property
    def is_over(self) -> bool:
        return self._room is not None and self.peak > self._room

    def run(self) -> None:
        while not self.ended.wait(WATCH_SECONDS):
            pid = self._child.pid
            self.peak = max(self.peak, resident(pid) if pid else 0)
            if pid and self.is_over:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
                return


class Pace(NamedTuple):
    """What one token takes."""

    seconds: float
    read: float  # bytes that came from the disk


@contextlib.contextmanager
def running(load: Load) -> Iterator[Child]:
    """Run the model in llama.cpp while it lasts. Raises EngineError."""
    child = Child(load)
    try:
        child.start()
        yield child
    finally:
        child.close()


def pace(child: Child, prompt: str, tokens: int = WRITTEN) -> Pace:
    """Return what a token of a short answer takes. Raises EngineError."""
    before = read_from_disk(child.pid)
    body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    timings = child.post("/completion", body)["timings"]
    written = max(1, int(timings["predicted_n"]))
    read = read_from_disk(child.pid) - before
    # the prompt is read as a whole, with the weights once, as for a token
    return Pace(float(timings["predicted_ms"]) / 1e3 / written, read / (written + 1))


def memory_pressure() -> float | None:
    """Return the share of the last ten seconds in which something waited for memory; None if the system says none."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return float(PRESSURE.read_text().split("avg10=")[1].split()[0]) / 100
    return None


class PagedTime(HeldSide[Child]):
    """Seconds for a token, within the memory that the load says. Each time it is opened it loads the model."""

    def __init__(self, name: str, load: Load) -> None:
        self.name, self.num_bytes, self._load = name, load.path.stat().st_size, load

    def make(self) -> contextlib.AbstractContextManager[Child]:
        return running(self._load)

    def load(self) -> None:
        pace(self.held, "Once", 1)

    def measure(self, item: Item) -> float:
        return pace(self.held, str(item)).seconds


def openings(first: int, number: int) -> Sequence[Item]:
    """Return beginnings of texts that a model completes, all different."""
    return [" ".join(text.split()[:6]) for text in [*PROSE, *SENTENCES][first : first + number]]


class ThreadedTime(EngineSide):
    """Seconds for a token that is written after a short prompt, with a number of threads."""

    def load(self) -> None:
        self.held.timed("Once", SPOKEN)  # the first answer also reads the file

    def measure(self, item: Item) -> float:
        seconds, tokens = 0.0, 0
        while seconds < LEAST_SECONDS:  # a moment in which the machine does something else is not the measurement
            answer = self.held.timed(str(item), SPOKEN)
            seconds, tokens = seconds + answer.seconds, tokens + len(answer.ids)
            if not answer.ids:
                break
        return seconds / max(1, tokens)
