"""What may be asked of the data. No numpy, so that a command line can be made of it at once."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from settle.base.settings import Settings


class DataSettings(Settings):
    """What to make of the given text."""

    held_out: float = Field(0.1, gt=0, le=0.5, description="share of the text kept for evaluation, 16 MB at most")
    held_out_from: Path | None = Field(None, description="evaluate on this file or folder instead")
    clean: bool = Field(True, description="drop and mend rows; the ledger says what and why")
    mask: Literal["none", "email", "keys", "ips", "all"] = Field("none", description="secrets to replace in the text")
    vocab_size: int | None = Field(None, ge=260, le=1_000_000, description="tokens; derived from the text if not given")
    field: str | None = Field(None, description="the column or key that holds the text, in tables and JSON")


class ColumnSettings(Settings):
    """Which column (or key) holds what; those not given are found by their usual names."""

    messages: str | None = Field(None, description="the turns of a conversation")
    system: str | None = Field(None, description="the system prompt")
    tools: str | None = Field(None, description="the tools that may be called")
    prompt: str | None = Field(None, description="the prompt")
    completion: str | None = Field(None, description="what is to be answered")
    chosen: str | None = Field(None, description="the better answer of a pair")
    rejected: str | None = Field(None, description="the worse answer of a pair")
    text: str | None = Field(None, description="plain text")


class RowSettings(Settings):
    """What to make of the given examples."""

    held_out: float = Field(0.1, gt=0, le=0.5, description="share of the rows kept for evaluation")
    held_out_from: Path | None = Field(None, description="evaluate on the rows of this file or folder instead")
    columns: ColumnSettings = ColumnSettings.model_validate({})
    supervise: Literal["assistant", "completion", "last-turn", "all"] | None = Field(
        None, description="what is learned: all answers, those after the last question, the last one, or every token"
    )
    template: str | None = Field(
        None,
        description="a template's file, chatml, gemma, llama3, turns, or none: prompt and completion as they are; "
        "the model's own if not given",
    )
    thinking: bool | None = Field(None, description="enable_thinking, for templates that ask")
    max_tokens: int | None = Field(None, ge=8, description="longest row, in tokens; the model's context if not given")
    piece_tokens: int | None = Field(
        None, ge=8, description="longest piece of a plain text, in tokens; the longest row if not given"
    )
    most_too_long: float = Field(0.05, ge=0, le=1, description="share of rows that may lose an answer for their length")
    drop_broken: bool = Field(False, description="leave out rows that cannot be used instead of refusing")
    repeats: bool = Field(False, description="keep rows that were there before, word for word")
