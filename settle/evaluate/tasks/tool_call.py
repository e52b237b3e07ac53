"""Tool calls: the right tool with the right arguments, and none where none is wanted."""

import json
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field

from settle.base.files import parse_json
from settle.evaluate.compare.cases import Case
from settle.evaluate.tasks import Task, share
from settle.evaluate.tasks.json import agreement

OFTEN = 0.3  # minimum share of reference answers that are calls, for calling to be the task
_ARGUMENTS = ("arguments", "parameters", "args", "input")
_DECODER = json.JSONDecoder()


class ToolCall(Task):
    """Half for the tool's name, half for its arguments (F1 over their values); a call too many counts as a wrong one.

    Calls are found however a model's template writes them, as long as they are JSON objects with a name and arguments.
    Where the wanted answer is text, 1 for an answer that calls nothing.
    """

    rank: ClassVar[int] = 1
    want: Literal["match", "valid"] = Field("match", description="match the wanted call, or only call where one is due")

    @property
    def title(self) -> str:  # type: ignore[override]
        return "tool call" if self.want == "match" else "calls when due"

    def score(self, answer: str, case: Case) -> float:
        ours, wanted = calls_in(answer), calls_in(case.reference)
        if not wanted or not ours or self.want == "valid":
            return float(bool(ours) == bool(wanted))
        left, total = list(ours), 0.0
        for name, arguments in wanted:
            worth = [(_worth(call, name, arguments), i) for i, call in enumerate(left)]
            if worth:
                best, at = max(worth, key=lambda w: w[0])
                total += best
                left.pop(at)
        return total / max(len(ours), len(wanted))

    def beside(self) -> Sequence[Task]:
        return (ToolCall(want="valid"),) if self.want == "match" else ()

    @classmethod
    def suited(cls, cases: Sequence[Case]) -> Self | None:
        return cls() if share([bool(calls_in(c.reference)) for c in cases]) >= OFTEN else None

    @classmethod
    def from_value(cls, value: str) -> Self:
        return cls.model_validate({"want": value or "match"})


def calls_in(text: str) -> list[tuple[str, object]]:
    """Names and arguments of the calls in a text, in order."""
    return [call for value in _values(text) for call in _calls(value)]


def _values(text: str) -> Iterator[object]:
    """Every JSON object or list in a text that is not inside another."""
    at = 0
    while at < len(text):
        starts = [i for i in (text.find("{", at), text.find("[", at)) if i >= 0]
        if not starts:
            return
        try:
            value, at = _DECODER.raw_decode(text, min(starts))
            yield value
        except (ValueError, RecursionError):
            at = min(starts) + 1


def _calls(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, list):
        for item in value:
            yield from _calls(item)
    elif isinstance(value, dict):
        inner = value.get("function")
        if isinstance(inner, dict):
            yield from _calls(inner)
            return
        key = next((k for k in _ARGUMENTS if k in value), None)
        if key is not None and isinstance(value.get("name"), str):
            yield value["name"], _opened(value[key])


def _opened(arguments: object) -> object:
    """Arguments that are JSON inside a string, as some templates write them."""
    if isinstance(arguments, str):
        try:
            return parse_json(arguments)
        except ValueError:
            pass
    return arguments


def _worth(call: tuple[str, object], name: str, arguments: object) -> float:
    return 0.5 + 0.5 * agreement(call[1], arguments) if call[0] == name else 0.0
