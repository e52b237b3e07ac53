"""The part of an answer that a pattern finds: a final number behind its marker, for one."""

import re
from collections.abc import Sequence
from typing import ClassVar, Self

from pydantic import Field, field_validator

from settle.evaluate.compare.cases import Case
from settle.evaluate.tasks import MOST_OF, Task, same, share

# how final answers are usually marked; the first that nearly all wanted answers have is taken
MARKERS = (
    r"####\s*(\S[^\n]*)",
    r"\\boxed\{([^{}]*)\}",
    r"(?i)\b(?:final |correct )?answer(?: is|:)\**\s*([^\n]*\S)",
)


class Regex(Task):
    """1 when the last thing the pattern finds in the answer (its first group) is what it finds in the wanted answer.

    Where the wanted answer has no such thing, 1 when the answer has one.
    """

    title: ClassVar[str] = "regex match"
    rank: ClassVar[int] = 3
    pattern: str = Field(min_length=1, description="a Python regular expression")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as e:
            raise ValueError(f"not a regular expression: {e}") from None
        return value

    def score(self, answer: str, case: Case) -> float:
        match, expected = self._last(answer), self._last(case.reference)
        return float(match is not None and (expected is None or same(match, expected)))

    @classmethod
    def suited(cls, cases: Sequence[Case]) -> Self | None:
        for pattern in MARKERS:
            task = cls(pattern=pattern)
            if share([task._last(c.reference) is not None for c in cases]) >= MOST_OF:
                return task
        return None

    @classmethod
    def from_value(cls, value: str) -> Self:
        return cls(pattern=value)

    def _last(self, text: str) -> str | None:
        found = None
        for found in re.finditer(self.pattern, text):  # noqa: B007 - the last match is what is wanted
            pass
        return None if found is None else next((g for g in found.groups() if g is not None), found.group())
