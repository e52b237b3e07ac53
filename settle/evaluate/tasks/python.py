"""A person's own scorer, in a Python file."""

import importlib.util
import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field

from settle.base.errors import DataError, UsageError
from settle.evaluate.compare.cases import Case
from settle.evaluate.tasks import Task, existing


class Python(Task):
    """What `score(answer, reference, case)` in the file returns: a number, more is better; True counts 1.

    case: the question, with `messages`, `prompt` and the row's `number`. The file runs with all of the person's rights.
    """

    is_share: ClassVar[bool] = False
    path: Path = Field(description="the file")

    @property
    def title(self) -> str:  # type: ignore[override]
        return f"score of {self.path.name}"

    def score(self, answer: str, case: Case) -> float:
        try:
            value = float(self._function(answer, case.reference, case))
        except Exception as e:  # noqa: BLE001 - whatever a person's own function raises is reported as theirs
            raise DataError(f"{self.path.name} failed on row {case.number}: {type(e).__name__}: {e}", "fix it") from e
        if not math.isfinite(value):
            raise DataError(f"{self.path.name} gave {value} for row {case.number}", "return a finite number")
        return value

    @classmethod
    def from_value(cls, value: str) -> Self:
        task = cls(path=existing(value))
        task._function  # noqa: B018 - a file that cannot be used is refused before any model answers
        return task

    @cached_property
    def _function(self) -> Callable[[str, str, Case], float]:
        spec = importlib.util.spec_from_file_location("settle_scorer", self.path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as e:  # noqa: BLE001 - as above
            raise UsageError(f"{self.path} cannot be read: {type(e).__name__}: {e}", "fix it") from e
        function = getattr(module, "score", None)
        if not callable(function):
            raise UsageError(
                f"{self.path} has no function `score`", "it returns a number: `def score(answer, reference, case)`"
            )
        return function  # type: ignore[no-any-return]
