"""A model in llama.cpp as the person runs it, and what it holds of the memory while it does."""

import contextlib
import os
import signal
import threading

from settle.base.errors import EngineError
from settle.doctor.subject import Subject
from settle.doctor.trial import Item, Side
from settle.infer.child_process import Child, Load
from settle.machine import memory, resident
from settle.plan.fit.memory import RUNTIME, VOCABULARY
from settle.plan.fit.model_shapes import NamedShape

WATCH_SECONDS = 0.005  # between two looks at the memory
ANSWERED = 4  # tokens, that show that it runs
SHORT = 512  # tokens of context of who says none
KEPT = 0.9  # of the room, that a context which is proposed takes at most
STEP = 256  # tokens, that a proposed context is a multiple of


def load_of(subject: Subject) -> Load:
    """The model as the person runs it."""
    assert subject.model is not None
    model, running = subject.model, subject.running
    adapters = (model.adapter,) if model.adapter else ()
    return Load(model.weights, running.context or SHORT, adapters=adapters, threads=running.threads)


def room_of(subject: Subject) -> int:
    """Bytes that the model may take: what is free here, unless the person said how much."""
    return subject.running.room or memory().available


def needed_bytes(named: NamedShape, context: int) -> float:
    """What a file takes in the processor's memory with a context, by its shape."""
    assert named.bytes is not None
    return named.bytes + named.shape.kv_bytes(context, 2.0) + RUNTIME["cpu"] + VOCABULARY * named.shape.vocab


def held_bytes(named: NamedShape, context: int) -> float:
    """The part of it that stays in memory whatever happens; pages of the file can go, and be read again."""
    assert named.bytes is not None
    return needed_bytes(named, context) - named.bytes


def fitting_tokens(named: NamedShape, context: int, room: int) -> int:
    """The longest context up to `context` that fits into `room` bytes with something left; 0 where none does."""
    tokens = context
    while tokens > STEP and needed_bytes(named, tokens) > KEPT * room:
        tokens = max(STEP, int(tokens * 0.9) // STEP * STEP)
    return tokens if needed_bytes(named, tokens) <= KEPT * room else 0


def peak_bytes(load: Load, room: int | None = None, prompt: str = "Once") -> int:
    """The most that llama.cpp held while it loaded the model and wrote a few tokens; it is ended as soon as that is
    more than `room`, so that nothing else on the machine runs short. Raises EngineError for another reason why it does
    not run."""
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
