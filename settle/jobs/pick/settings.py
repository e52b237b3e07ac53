"""What `settle pick` can be told; light to import, the job itself is in `pick.py`."""

from pathlib import Path

from pydantic import Field

from settle.machine.threads import ThreadSettings


class PickSettings(ThreadSettings):
    """What the model is for, what it must be able to do, and which models to choose from."""

    task: str = Field("", description="what the model is for, in words: coding, JSON, tools, mails in German …")
    prompts: Path | None = Field(
        None, description="prompts as people will ask them, with the wanted answers where there are any"
    )
    models: list[str] = Field(
        [], description="choose among these; those on this machine and in the catalogue if not given"
    )
    context: str | None = Field(
        None, description="tokens of a prompt and its answer together that the model must take, such as 8k"
    )
    speed: float | None = Field(None, gt=0, description="tokens per second that an answer must have at least")
    score: str | None = Field(
        None,
        description="metric: NAME, NAME:VALUE such as regex:PATTERN, or a Python file; from the data if not given",
        json_schema_extra={"parts": "evaluate/tasks"},
    )
    limit: int = Field(60, gt=0, description="rows of prompts that are asked at most")
    max_tokens: int | None = Field(
        None, gt=0, description="longest answer, in tokens; half more than nearly all wanted answers if not given"
    )
    commercial: bool = Field(False, description="leave out models whose licence forbids commercial use")
    yes: bool = Field(False, description="download what would be compared without asking")
    ledger: bool = Field(False, description="show what was predicted on this machine beside what was measured")
