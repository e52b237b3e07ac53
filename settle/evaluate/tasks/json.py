"""JSON: whether it is valid, and says what is wanted."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field

from settle.evaluate.compare.cases import Case
from settle.evaluate.tasks import MOST_OF, PARTS, Task, same, share

Want = Literal["match", "values", "valid"]
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.S)


class Json(Task):
    """Share of answers in which every value is right and at its place.

    With `values` the share of values that are (F1 over all places), which decides where the wanted answers have
    several; 0 when the answer is no JSON.
    """

    rank: ClassVar[int] = 2
    want: Want = Field(
        "match", description="equal the wanted answer; the share of its values that are right; or only be valid JSON"
    )

    @property
    def title(self) -> str:  # type: ignore[override]
        return {"match": "JSON match", "values": "JSON values", "valid": "valid JSON"}[self.want]

    def score(self, answer: str, case: Case) -> float:
        value = value_in(answer)
        if value is None or self.want == "valid":
            return float(value is not None)
        wanted = value_in(case.reference)
        right = agreement(value[0], wanted[0]) if wanted else 0.0
        return right if self.want == "values" else float(right == 1.0)

    def beside(self) -> Sequence[Task]:
        names: tuple[Want, ...] = () if self.want == "valid" else ("match", "values", "valid")
        return [Json(want=name) for name in names if name != self.want]

    @classmethod
    def suited(cls, cases: Sequence[Case]) -> Self | None:
        """Objects and lists: a bare number is JSON too, and is better matched as text."""
        values = [value_in(c.reference) for c in cases]
        if share([f is not None and isinstance(f[0], dict | list) for f in values]) < MOST_OF:
            return None
        has_parts = share([f is not None and len(list(_leaves(f[0]))) >= PARTS for f in values]) > 0.5
        return cls(want="values" if has_parts else "match")

    @classmethod
    def from_value(cls, value: str) -> Self:
        return cls.model_validate({"want": value or "match"})


def value_in(text: str) -> tuple[object] | None:
    """Return the JSON value that a text is, alone or as its only fenced block; in a tuple, since null is one too."""
    fenced = _FENCE.findall(text)
    for candidate in (text, *(fenced if len(fenced) == 1 else ())):
        try:
            return (json.loads(candidate),)
        except (ValueError, RecursionError):
            continue
    return None


def agreement(ours: object, wanted: object) -> float:
    """F1 over the leaves of two JSON values, each a place and the value there; 1 when they are equal."""
    left, right = dict(_leaves(ours)), dict(_leaves(wanted))
    equal = sum(path in left and _same(left[path], value) for path, value in right.items())
    return 2 * equal / (len(left) + len(right))


def _leaves(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], object]]:
    """Every place of a value; an empty object or list is a leaf, so there is always one."""
    places = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    empty = True
    for key, inner in places:
        empty = False
        yield from _leaves(inner, (*path, key))
    if empty:
        yield path, value


def _same(ours: object, wanted: object) -> bool:
    if isinstance(ours, str) and isinstance(wanted, str):
        return same(ours, wanted)
    return type(ours) is type(wanted) and ours == wanted or _is_number(ours) and _is_number(wanted) and ours == wanted


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
