"""A run's steps within a limit of memory, each measured by whether it fails."""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from settle.base.errors import ResourceError, RunError
from settle.base.line_child import LineChild
from settle.base.python_command import module_command
from settle.doctor.training.facts import Recipe
from settle.doctor.trial import HeldSide, Item
from settle.wire.types import JsonObject

CHILD = "settle.doctor.training.step_child"


@dataclass(frozen=True)
class Steps:
    """Which steps are taken, and how. Without `limit` and `free` they get whatever memory there is."""

    command: str
    recipe: Recipe
    folder: str  # for what the run needs meanwhile
    steps: int  # of the run, among which the largest are taken first
    micro_batches: int | None = None  # parts of a step that go through the model one after the other; None: as it was
    recompute: int | None = None  # see `Decoder`; as the run had it where None
    limit: int | None = None  # bytes of private memory
    free: int | None = None  # bytes of private memory beside what the model takes once it is built


class Ready(NamedTuple):
    """What the child says once the model is built."""

    whole: int = 0  # rows or tokens of a step
    least: int = 0  # of them that go through the model at once
    parts: int = 0  # that a step has
    built: int = 0  # bytes of private memory that the model takes
    steps: Sequence[int] = ()  # the largest first


class Taken(NamedTuple):
    """What became of a step."""

    missing: int | None  # bytes that it could not get, None where it was taken
    held: int  # bytes then
    loss: float | None


class StepChild:
    """The process that takes steps. Use it as a context manager."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self.ready = Ready()

    def __enter__(self) -> "StepChild":
        """Start it. Raises RunError when it ends, ResourceError when that is for want of memory."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._child = LineChild(module_command(CHILD), errors=self._errors)
        try:
            self.ready = Ready(**self._ask(asdict(self._steps) | {"recipe": dict(self._steps.recipe)}))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close(is_over=True)
        self._errors.close()

    def take(self, step: int) -> Taken:
        """Take a step, after which the weights are as they were."""
        return Taken(**self._ask({"step": step}))

    def _ask(self, request: JsonObject) -> dict[str, Any]:
        answer = self._child.ask(json.dumps(request).encode())
        if not answer:
            code = self._child.exit_code()
            self._errors.seek(0)
            lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
            last = lines[-1] if lines else f"exit code {code}"
            kind = ResourceError if "alloc" in last.lower() or "memory" in last.lower() else RunError
            raise kind(f"the run's steps cannot be taken again: {last[:200]}", "train it again, and look at its end")
        values: dict[str, Any] = json.loads(answer)
        return values


class FailedSteps(HeldSide[StepChild]):
    """1 for a step that cannot be taken for want of memory, 0 for one that can."""

    def __init__(self, name: str, steps: Steps) -> None:
        self.name, self.steps, self.step_seconds = name, steps, 0.0  # that the latest step took

    def make(self) -> StepChild:
        return StepChild(self.steps)

    def measure(self, item: Item) -> float:
        child, began = self.held, time.monotonic()
        try:
            missing = child.take(int(str(item))).missing
            self.step_seconds = time.monotonic() - began
            return float(missing is not None)
        except ResourceError:  # a library of C ends where another raises an error
            self.close()
            self.load()
            return 1.0
