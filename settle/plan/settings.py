"""What a person may ask of a training run. No torch, so that a command line can be made of it at once."""

from typing import Any, Literal

from pydantic import Field

from settle.base.settings import Settings
from settle.data.settings import DataSettings, RowSettings


class RunSettings(Settings):
    """What a person may ask of any run that trains."""

    time: str | None = Field(None, description="time budget, such as 30m or 8h, that ends the run")
    tokens: str | None = Field(None, description="stop after this many tokens at the latest, such as 20M")
    steps: int | None = Field(None, gt=0, description="stop after this many optimizer steps at the latest")
    max_cost: float | None = Field(None, gt=0, description="most money to spend, in the unit of the price below")
    tolerance: float = Field(
        0.005, gt=0, lt=1, description="improvement, as a share of the loss, that 10 % more tokens must bring to go on"
    )
    seed: int = Field(0, ge=0, description="order of the data and first weights")
    rates: dict[str, float] = Field({}, description="settings of the optimizer, such as --rates.lr 0.01")
    device: str | None = Field(None, description="cpu, cuda or mps; the fastest there is when not given")
    dtype: str | None = Field(None, description="float32, bfloat16 or float16; the faster one here when not given")
    threads: int | None = Field(None, gt=0, description="processor threads; all cores when not given")
    watts: float | None = Field(None, gt=0, description="what this machine draws; measured or estimated if not given")
    price_per_kwh: float = Field(0.30, ge=0, description="price of energy")
    price_per_hour: float = Field(0.0, ge=0, description="price of the machine, for a rented one")


class TrainingSettings(RunSettings):
    """What a person may ask of a training run."""

    time: str | None = Field(None, description="time budget, such as 30m or 8h: chooses the model, and ends the run")
    size: str | None = Field(None, description="parameters of the model, such as 2M; derived when not given")
    context: int | None = Field(None, ge=16, description="longest stretch of text the model sees, in tokens")
    batch_tokens: int | None = Field(None, ge=64, description="tokens of one optimizer step")
    architecture: str = Field("llama", description="model family")
    objective: str = Field("next_token", description="what is learned")
    optimizer: str = Field("muon", description="muon, or adamw alone")
    data: DataSettings = Field(DataSettings(), description="what to make of the text")


class TuningSettings(RunSettings):
    """What a person may ask of a run that goes on with a model others trained."""

    adapter: dict[str, Any] = Field(
        {},
        description="lora, dora, or full; with settings such as --adapter.rank 32",
    )
    quantize: Literal["nf4", "as-is"] | None = Field(
        None, description="keep the frozen weights in 4 bits (nf4), or in the blocks of the base's own file (as-is)"
    )
    objective: dict[str, Any] = Field(
        {},
        description="next_token, or dpo for pairs; with settings such as --objective.beta 0.2",
    )
    optimizer: str = Field("adamw", description="adamw, or muon for matrices")
    batch_rows: int = Field(8, gt=0, description="rows of one optimizer step")
    epochs: float | None = Field(None, gt=0, description="stop after so many times through the rows at the latest")
    recompute: bool | None = Field(
        None, description="compute each layer again on the way back, to save memory; when it is short if not given"
    )
    rows: RowSettings = Field(RowSettings(), description="what to make of the examples")
    compare: bool = Field(True, description="ask the base and the tuned model the held-out rows at the end")
    score: str | None = Field(
        None,
        description="exact, f1, regex:PATTERN, json, tool_call or a Python file; chosen from the data if not given",
    )
    compare_rows: int = Field(100, gt=0, description="ask at most this many held-out rows at the end")
