"""What `settle choose` can be told; light to import, the job itself is in `choose.py`."""

from pathlib import Path

from pydantic import Field

from settle.machine.threads import ThreadSettings


class ChooseSettings(ThreadSettings):
    """The examples, what they may be answered with, and how the answers are judged."""

    examples: Path = Field(
        description="rows of a question and its wanted answer, as `settle tune` reads them; with --ask a choice's name"
    )
    docs: Path | None = Field(None, description="folder of documents that may hold the answers")
    model: str | None = Field(None, description="model that answers: a run, a model of the store, or a .gguf file")
    ask: str | None = Field(None, description="answer this in the way that a finished choice took")
    name: str | None = Field(None, description="name of what is kept; made from the file's name if not given")
    score: str | None = Field(
        None,
        description="metric: NAME, NAME:VALUE such as regex:PATTERN, or a Python file; from the data if not given",
        json_schema_extra={"parts": "evaluate/tasks"},
    )
    margin: float = Field(
        0.02, ge=0, lt=1, description="a cheaper way may score this much less than the best, as a share of 1"
    )
    test_share: float = Field(
        0.4, gt=0, lt=1, description="share of the examples that judges, locked until everything is built"
    )
    max_tokens: int | None = Field(
        None, gt=0, description="longest answer, in tokens; half more than nearly all wanted answers if not given"
    )
    epochs: float = Field(8.0, gt=0, description="times that the model sees every example when it is tuned")
    every: bool = Field(False, description="build and measure every way, also those that the triage rules out")
    dry: bool = Field(False, description="show what the examples can tell and how long it takes; measure nothing")
    seed: int = Field(0, ge=0, description="seed of the split, of the chosen examples and of the tuning")
