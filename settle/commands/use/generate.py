"""settle generate: a model's answers to a file of prompts."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from settle.base.event_log import Events
from settle.base.files import read_object
from settle.commands import Command
from settle.machine.threads import ThreadSettings


class Generate(ThreadSettings, Command):
    """Answer every row of a file of prompts.

    ROWS is a .jsonl, .csv or .parquet file with `prompt` or `messages`, or any columns with a --template that names
    them, such as 'Translate into French: {text}'. Each row is written with its `completion`, so `settle tune` can learn
    from the result. Rows are answered several at a time, and answers are kept: the same command continues after Ctrl-C.
    Text of a row cannot open a turn of the chat. The exit code is 3 when no row was answered.
    """

    positional: ClassVar[tuple[str, ...]] = ("name", "rows")
    writes_answer: ClassVar[bool] = True

    name: str = Field(description="a run, a model of the store, or a .gguf file")
    rows: Path = Field(description="a .jsonl, .csv or .parquet file of prompts; - is stdin")
    out: Path | None = Field(None, description="write the rows with their answers to this file instead of stdout")
    template: str | None = Field(None, description="prompt of each row, with {COLUMN} for its values")
    system: str | None = Field(None, description="system prompt")
    samples: int = Field(1, ge=1, le=1000, description="answers per prompt, each on a row of its own")
    json_schema: Path | None = Field(None, description="file with a JSON Schema that every answer must fit")
    max_tokens: int = Field(512, gt=0, description="longest answer, in tokens")
    temperature: float | None = Field(
        None, ge=0, description="0 takes the likeliest token, as for one sample; what the model recommends for several"
    )
    think: bool = Field(False, description="let a reasoning model think first; its thoughts are left out")
    context: int | None = Field(None, gt=0, description="tokens of a prompt with its answer; 4096 if not given")
    seed: int = Field(0, ge=0, description="same seed, same answers")

    def run(self, events: Events) -> int:
        from settle.jobs.generate import Drawing, generate

        schema = read_object(self.json_schema, "a JSON Schema") if self.json_schema else None
        drawing = Drawing(
            self.samples, self.max_tokens, self.temperature, self.seed, schema, self.think, self.context, self.threads
        )  # fmt: skip
        return generate(self.name, self.rows, drawing, events, self.template, self.system, self.out)
