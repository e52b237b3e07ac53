"""What a person may ask when a model is made smaller. No torch, so that a command line can be made of it at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from settle.base.amounts import num_bytes, share
from settle.base.choice import Choice, choice
from settle.base.errors import UsageError
from settle.machine.threads import ThreadSettings

Goal = Literal["size", "mix", "speed", "loss", "plan", "unchanged"]


@dataclass(frozen=True)
class Budget:
    """What decides. amount: bytes, tokens per second, or a share of the loss, by the goal; mix: llama.cpp's name."""

    goal: Goal
    amount: float = 0.0
    mix: str = ""


class ShrinkOptions(ThreadSettings):
    """What a person may ask when a model is made smaller."""

    model: str = Field(description="a run, a model of the store, a folder in Hugging Face's layout, or a .gguf file")
    to: str | None = Field(None, description="a size such as 400MB, or a type of llama.cpp: Q4_K_M, Q8_0, IQ4_XS …")
    speed: float | None = Field(None, gt=0, description="tokens per second that the model must write on this machine")
    lose: str | None = Field(None, description="how much the loss on held-out text may rise, such as 1%")
    plan: bool = Field(False, description="predict, then measure, every option; write no model")
    vocabulary: bool = Field(False, description="keep only the tokens that INPUTS need; no weight is rounded")
    quantizer: Choice = choice("shrink/quantizers", default="auto", description="what chooses the type of each tensor")
    calibration: list[str] = Field([], description="other files to measure importance on")
    imatrix: Path | None = Field(None, description="importance matrix of llama.cpp, instead of measuring one")
    requantize: bool = Field(False, description="accept a model that is quantized already")
    compare: bool = Field(True, description="compare both models on the held-out examples at the end")
    score: str | None = Field(
        None,
        description="metric: NAME, NAME:VALUE such as regex:PATTERN, or a Python file; from the data if not given",
        json_schema_extra={"parts": "evaluate/tasks"},
    )

    def budget(self) -> Budget:
        """Return the budget. Raises UsageError unless exactly one was given, or none with `vocabulary`."""
        from settle.shrink.types.mixes import MIXES  # loads numpy

        options = [name for name in ("to", "speed", "lose", "plan") if getattr(self, name)]
        if not options and self.vocabulary:
            return Budget("unchanged")
        if len(options) != 1:
            names = ", ".join(f"--{name}" for name in options) or "none"
            fix = "give --to 400MB, --to Q4_K_M, --speed 40, --lose 1% or --plan"
            raise UsageError(f"one budget decides, and {names} were given", fix)
        if self.to is not None and self.to.upper() in MIXES:
            return Budget("mix", mix=self.to.upper())
        if self.to is not None and self.to[:1].isalpha():
            fix = f"give a size such as 400MB, or one of: {', '.join(MIXES)}"
            raise UsageError(f"there is no type {self.to!r}", fix)
        if self.to is not None:
            return Budget("size", num_bytes(self.to))
        if self.lose is not None:
            return Budget("loss", share(self.lose))
        return Budget("plan") if self.plan else Budget("speed", self.speed or 0.0)
