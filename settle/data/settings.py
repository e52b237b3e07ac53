"""The settings of data preparation. No numpy, so that a command line can be built from them at once."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from settle.base.settings import Settings


class DataSettings(Settings):
    """How text is prepared for training."""

    held_out: float = Field(
        0.1,
        gt=0,
        le=0.5,
        description="share of the text that judges the result, at most 16 MB; up to half as much again selects the "
        "weights",
    )
    held_out_from: Path | None = Field(None, description="judge the result on this file or folder instead")
    clean: bool = Field(
        True, description="clean the rows; the ledger lists every dropped or repaired row with the reason"
    )
    mask: Literal["none", "email", "keys", "ips", "all"] = Field(
        "none", description="kind of secrets to replace in the text"
    )
    vocab_size: int | None = Field(
        None,
        ge=260,
        le=1_000_000,
        description="number of tokens in the vocabulary; derived from the text when not given",
    )
    field: str | None = Field(None, description="column or key that holds the text, in tables and JSON")


class ColumnSettings(Settings):
    """Which column (or key) holds what; those not given are found by their usual names."""

    messages: str | None = Field(None, description="column of the messages of a conversation")
    system: str | None = Field(None, description="column of the system prompt")
    tools: str | None = Field(None, description="column of the tools that may be called")
    prompt: str | None = Field(None, description="column of the prompt")
    completion: str | None = Field(None, description="column of the completion")
    chosen: str | None = Field(None, description="column of the chosen answer of a pair")
    rejected: str | None = Field(None, description="column of the rejected answer of a pair")
    text: str | None = Field(None, description="column of plain text")
    label: str | None = Field(None, description="column of the right option of a decision")


class RowSettings(Settings):
    """How examples are prepared for tuning."""

    held_out: float = Field(
        0.1,
        gt=0,
        le=0.5,
        description="share of the rows that judges the result; of few rows up to a third unless it is given; half of "
        "the share again selects the weights",
    )
    held_out_from: Path | None = Field(None, description="judge the result on the rows of this file or folder instead")
    columns: ColumnSettings = ColumnSettings.model_validate({})
    supervise: Literal["assistant", "completion", "last-turn", "all"] | None = Field(
        None,
        description="supervised tokens: all answers, those after the last question, the last one, or every token",
    )
    template: str | None = Field(
        None,
        description="a template's file, chatml, gemma, llama3, turns, or none: prompt and completion as they are; "
        "the model's own if not given",
    )
    thinking: bool | None = Field(None, description="value of enable_thinking, for chat templates that use it")
    max_tokens: int | None = Field(
        None, ge=8, description="longest row, in tokens; the model's context length when not given"
    )
    piece_tokens: int | None = Field(
        None, ge=8, description="longest piece of a plain text, in tokens; the longest row when not given"
    )
    most_too_long: float = Field(
        0.05, ge=0, le=1, description="share of rows that may lose an answer because they are too long"
    )
    drop_broken: bool = Field(False, description="skip rows that cannot be used, instead of stopping with an error")
    repeats: bool = Field(False, description="keep exact duplicates of rows")
