"""A run's steps within a limit of memory, each measured by whether it fails."""

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from settle.base.child.python_command import module_command
from settle.base.errors import ResourceError, RunError
from settle.doctor.trial import Item, Side

CHILD = "settle.doctor.training.step_child"


@dataclass(frozen=True)
class Steps:
    """Which steps, and how. folder: for what the run needs meanwhile. steps: of the run, among which the largest are
    taken first. micro_batches: parts of a step that go through the model one after the other; recompute: see `Decoder`;
    as the run had it where None. limit: bytes of private memory; free: the same beside what the model takes once it is
    built; whatever there is where both are None."""

    command: str
    recipe: Mapping[str, object]
    folder: str
    steps: int
    micro_batches: int | None = None
    recompute: int | None = None
    limit: int | None = None
    free: int | None = None


class StepChild:
    """The process that takes them. Use it as a context manager."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._process: subprocess.Popen[str] | None = None
        self.ready: Mapping[str, object] = {}

    def __enter__(self) -> "StepChild":
        """Raises RunError when it ends, ResourceError when that is for want of memory."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            module_command(CHILD), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            text=True, process_group=0,
        )  # fmt: skip
        try:
            self.ready = self._ask(asdict(self._steps) | {"recipe": dict(self._steps.recipe)})
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()
            self._errors.close()

    def take(self, step: int) -> Mapping[str, object]:
        """missing: bytes that the step could not get, None where it was taken; held: bytes then; loss: of it."""
        return self._ask({"step": step})

    def _ask(self, line: Mapping[str, object]) -> Mapping[str, object]:
        process = self._process
        assert process is not None and process.stdin and process.stdout
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(line) + "\n")
            process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            code = process.wait()
            self._errors.seek(0)
            lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
            last = lines[-1] if lines else f"exit code {code}"
            kind = ResourceError if "alloc" in last.lower() or "memory" in last.lower() else RunError
            raise kind(f"the run's steps cannot be taken again: {last[:200]}", "train it again, and look at its end")
        values: Mapping[str, object] = json.loads(answer)
        return values


class FailedSteps(Side):
    """1 for a step that cannot be taken for want of memory, 0 for one that can."""

    def __init__(self, name: str, steps: Steps) -> None:
        self.name, self.steps, self.step_seconds = name, steps, 0.0  # that the latest step took
        self._child: StepChild | None = None

    def open(self) -> None:
        if self._child is None:
            self._child = StepChild(self.steps).__enter__()

    @property
    def ready(self) -> Mapping[str, object]:
        """What the process said of the run when it was ready."""
        assert self._child is not None
        return self._child.ready

    def measure(self, item: Item) -> float:
        assert self._child is not None and isinstance(item, Mapping)
        began = time.monotonic()
        try:
            missing = self._child.take(int(str(item["step"])))["missing"]
            self.step_seconds = time.monotonic() - began
            return float(missing is not None)
        except ResourceError:  # a library of C ends where another raises an error
            self.close()
            self.open()
            return 1.0

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.__exit__()
