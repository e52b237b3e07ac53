"""settle decide: typed questions about a text or a table's rows, answered with probabilities."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from settle.base.amounts import share
from settle.base.event_log import Events
from settle.commands import Command
from settle.machine.threads import ThreadSettings


class Decide(ThreadSettings, Command):
    """Ask a decision model about a text, or about a table's rows.

    `settle tune MODEL ROWS --objective decision` makes the model. Without TEXT, it is read from stdin; the answer is
    the options with their probabilities, the likeliest first. --rows writes the table with the answers. The exit code
    is 3 when every answer is refused.
    """

    positional: ClassVar[tuple[str, ...]] = ("name", "text")
    writes_answer: ClassVar[bool] = True

    name: str = Field(description="a run, a model of the store, or a .gguf file")
    text: str | None = Field(None, description="decide about this; - reads it from stdin")
    questions: Path | None = Field(
        None, description="JSON file of questions, as /v1/systemone has them; those that it was tuned for if not given"
    )
    refuse_above_risk: str | None = Field(
        None, description="refuse answers that are wrong with a higher probability than this, such as 5%"
    )
    rows: Path | None = Field(None, description="a .csv, .jsonl or .parquet file of rows to decide about; - is stdin")
    out: Path | None = Field(None, description="write the rows with their answers to this file instead of stdout")
    context: int | None = Field(None, gt=0, description="tokens of a text with its question; up to 4096 if not given")

    def run(self, events: Events) -> int:
        from settle.infer.decision_session import Asking, decide

        risk = share(self.refuse_above_risk) if self.refuse_above_risk is not None else None
        return decide(
            self.name, self.text, Asking(self.questions, risk), events, self.rows, self.out, self.context
        )  # fmt: skip
