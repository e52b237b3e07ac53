"""settle eval: compare a tuned model with its base, and measure what it forgot."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from settle.base.event_log import Events
from settle.commands import Command
from settle.machine.threads import ThreadSettings


class Eval(ThreadSettings, Command):
    """Compare a tuned model with its base.

    They are compared on held-out rows, on what both knew, and on instructions. Both answer the same rows in llama.cpp.
    The verdict is better, worse, no different or too few rows to tell, with an interval; the exit code is 0 when it is
    better and 3 when it is not.
    """

    positional: ClassVar[tuple[str, ...]] = ("tuned",)

    tuned: str = Field(description="a run, a model in the store, or a .gguf file")
    against: str | None = Field(
        None, description="what to compare it with; the model that it was made from if not given"
    )
    adapter: Path | None = Field(None, description="a LoRA in a .gguf file, to be served over TUNED")
    rows: Path | None = Field(None, description="rows to ask, not trained on; the run's held-out ones if not given")
    score: str | None = Field(
        None,
        description="metric: NAME, NAME:VALUE such as regex:PATTERN, or a Python file; from the data if not given",
        json_schema_extra={"parts": "evaluate/tasks"},
    )
    limit: int = Field(200, gt=0, description="ask at most this many rows")
    max_tokens: int | None = Field(
        None, gt=0, description="longest answer, in tokens; half more than nearly all wanted answers if not given"
    )
    familiar: Path | None = Field(
        None, description="text that the base knew, to see what is forgotten; the base writes some if not given"
    )
    only_rows: bool = Field(False, description="leave out what was forgotten, and the instructions")

    verify: bool = Field(
        False, description="check the verdict.json beside TUNED: its files, its figures, and its rows, asked again"
    )

    def run(self, events: Events) -> int:
        from settle.evaluate.compare.against_base import Questions, compare_with_base, verify

        questions = Questions(self.rows, self.score, self.limit, self.max_tokens, self.familiar, self.only_rows)
        if self.verify:
            return verify(self.tuned, questions, events, self.against)
        return compare_with_base(self.tuned, questions, events, self.against, self.adapter)
