"""Tool calls: the right tool with the right arguments, and none where none is wanted."""

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field

from settle.evaluate.compare.cases import Case
from settle.evaluate.tasks import Task, share
from settle.evaluate.tasks.json import agreement
from settle.infer.tool_calls import calls_in

OFTEN = 0.3  # minimum share of reference answers that are calls, for calling to be the task


class ToolCall(Task):
    """Half for the tool's name, half for its arguments (F1 over their values); a call too many counts as a wrong one.

    Calls are found as `settle serve` finds them, however a model's template writes them. Where the wanted answer is
    text, 1 for an answer that calls nothing.
    """

    rank: ClassVar[int] = 1
    want: Literal["match", "valid"] = Field("match", description="match the wanted call, or only call where one is due")

    @property
    def title(self) -> str:  # type: ignore[override]
        return "tool call" if self.want == "match" else "calls when due"

    def score(self, answer: str, case: Case) -> float:
        ours, wanted = calls_in(answer, case.tools), calls_in(case.reference)
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


def _worth(call: tuple[str, object], name: str, arguments: object) -> float:
    return 0.5 + 0.5 * agreement(call[1], arguments) if call[0] == name else 0.0
