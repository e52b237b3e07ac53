"""What the user may ask of a training run. No torch, so that a command line can be made of it at once."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from settle.base.amounts import precision
from settle.base.choice import Choice, choice
from settle.base.settings import Renamed
from settle.data.settings import DataSettings, RowSettings
from settle.machine.threads import ThreadSettings


class RunSettings(ThreadSettings):
    """What the user may ask of any run that trains."""

    renamed: ClassVar[Mapping[str, Renamed]] = {"rates": Renamed("optimizer", gone_in="2.0")}

    time: str | None = Field(None, description="time budget that ends the run, such as 30m or 8h")
    tokens: str | None = Field(None, description="stop after at most this many tokens, such as 20M")
    steps: int | None = Field(None, gt=0, description="stop after at most this many optimizer steps")
    max_cost: float | None = Field(None, gt=0, description="most money to spend, in the currency of the prices")
    tolerance: float = Field(
        0.005,
        gt=0,
        lt=1,
        description="continue while 10 % more tokens can still bring this improvement, as a fraction of the loss",
    )
    sample: str | None = Field(
        None, description="prompt that the model completes or answers at the start, in the middle and at the end"
    )
    seed: int = Field(0, ge=0, description="seed of the data order and the initial weights")
    optimizer: Choice = choice("train/optimizers", default="adamw", description="optimizer")
    device: str | None = Field(None, description="cpu, cuda or mps; the fastest one here when not given")
    dtype: str | None = Field(None, description="float32, bfloat16 or float16; the fastest one here when not given")
    sharding: Literal["none", "full", "hybrid"] = Field(
        "none",
        description="on several ranks: each holds the whole model (none), or its rows of the weights, gradients and "
        "optimizer state alone (full), which needs less memory and more communication; hybrid shares out the rows "
        "within each host, and every host has all of them; only where every weight is trained",
    )
    offload: bool = Field(
        False,
        description="with --sharding on CUDA: keep each rank's rows of weights, gradients and optimizer state in the "
        "host's memory",
    )
    keep_checkpoints: bool = Field(False, description="keep the checkpoints when the run has finished")
    watts: float | None = Field(
        None,
        gt=0,
        description="power of this machine, in watts, or of each of several hosts; measured or estimated when not "
        "given",
    )
    price_per_kwh: float = Field(0.30, ge=0, description="price of a kWh of energy")
    currency: str = Field("USD", pattern="^[A-Z]{3}$", description="currency of the prices, such as EUR")
    price_per_hour: float = Field(
        0.0, ge=0, description="price of an hour of this machine, or of each of several hosts, when it is rented"
    )

    @field_validator("dtype")
    @classmethod
    def _as_torch_names_it(cls, value: str | None) -> str | None:
        return precision(value) if value is not None else None


class TrainingSettings(RunSettings):
    """What the user may ask of a training run."""

    time: str | None = Field(
        None, description="time budget, such as 30m or 8h: it determines the model size and ends the run"
    )
    size: str | None = Field(None, description="number of parameters, such as 2M; derived when not given")
    context: int | None = Field(None, ge=16, description="context length, in tokens")
    batch_tokens: int | None = Field(None, ge=64, description="tokens per optimizer step")
    micro_tokens: int | None = Field(
        None,
        ge=16,
        description="tokens that go through the model at once, of those of a step; as many as suit when not given",
    )
    architecture: str = Field(
        "llama", description="model architecture", json_schema_extra={"parts": "model/architectures"}
    )
    objective: Choice = choice(
        "train/objectives",
        default="next_token",
        suits={"rows": "text", "needs_base": False},
        description="what the model learns to minimize",
    )
    optimizer: Choice = choice("train/optimizers", default="muon", description="optimizer")
    average: float = Field(
        0.1, ge=0, lt=1, description="share of the steps that averaged weights reach back over; 0: none are tried"
    )
    decay_passes: float = Field(
        2.0, ge=0, description="longest final decay of the learning rate, in passes over the text; 0: any length"
    )
    data: DataSettings = Field(DataSettings(), description="how the text is read and cleaned")


class TuningSettings(RunSettings):
    """What the user may ask of a run that trains a pretrained model further."""

    adapter: Choice = choice(
        "model/adapters",
        default="lora",
        extra={"full": "train every weight"},
        description="what is trained: an adapter beside the frozen base, or every weight (full)",
    )
    quantize: Literal["nf4", "as-is"] | None = Field(
        None, description="keep the frozen weights in 4 bits (nf4), or as the base's own file has them (as-is)"
    )
    objective: Choice = choice(
        "train/objectives",
        description="what the model learns to minimize; next_token, or dpo for preference pairs, when not given; "
        "decision is for labelled rows; rank and contrastive are for encoders",
    )
    batch_rows: int = Field(8, gt=0, description="rows per optimizer step")
    micro_rows: int | None = Field(
        None,
        gt=0,
        description="rows that go through the model at once, which divide --batch-rows; as many as fit in memory when "
        "not given",
    )
    epochs: float | None = Field(None, gt=0, description="stop after at most this many passes over the rows")
    recompute: bool | None = Field(
        None,
        description="activation checkpointing: recompute each layer in the backward pass to save memory; only when "
        "memory is short if not given",
    )
    optimizer: Choice = choice(
        "train/optimizers",
        default="adamw",
        description="optimizer; adamw takes lower rates than its defaults when they are not given",
    )
    rows: RowSettings = Field(RowSettings(), description="how the examples are read")
    compare: bool = Field(True, description="compare the tuned model with its base on the held-out rows at the end")
    score: str | None = Field(
        None,
        description="metric of the comparison; NAME, NAME:VALUE such as regex:PATTERN, or a Python file; chosen from "
        "the data when not given",
        json_schema_extra={"parts": "evaluate/tasks"},
    )
    compare_rows: int = Field(100, gt=0, description="compare on at most this many held-out rows")
