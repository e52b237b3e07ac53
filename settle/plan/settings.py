"""What a person may ask of a training run. No torch, so that a command line can be made of it at once."""

from pydantic import Field

from settle.base.settings import Settings
from settle.data.settings import DataSettings


class TrainingSettings(Settings):
    """What a person may ask of a training run."""

    size: str | None = Field(None, description="parameters of the model, such as 2M; derived when not given")
    time: str | None = Field(None, description="time budget, such as 30m or 8h: chooses the model, and ends the run")
    tokens: str | None = Field(None, description="stop after this many tokens at the latest, such as 20M")
    steps: int | None = Field(None, gt=0, description="stop after this many optimizer steps at the latest")
    max_cost: float | None = Field(None, gt=0, description="most money to spend, in the unit of the price below")
    tolerance: float = Field(
        0.005, gt=0, lt=1, description="improvement, as a share of the loss, that 10 % more tokens must bring to go on"
    )
    seed: int = Field(0, ge=0, description="order of the data and first weights")
    context: int | None = Field(None, ge=16, description="longest stretch of text the model sees, in tokens")
    batch_tokens: int | None = Field(None, ge=64, description="tokens of one optimizer step")
    architecture: str = Field("llama", description="model family")
    objective: str = Field("next_token", description="what is learned")
    optimizer: str = Field("muon", description="muon, or adamw alone")
    rates: dict[str, float] = Field({}, description="settings of the optimizer, such as --rates.lr 0.01")
    device: str | None = Field(None, description="cpu, cuda or mps; the fastest there is when not given")
    dtype: str | None = Field(None, description="float32, bfloat16 or float16; the faster one here when not given")
    threads: int | None = Field(None, gt=0, description="processor threads; all cores when not given")
    watts: float | None = Field(None, gt=0, description="what this machine draws; measured or estimated if not given")
    price_per_kwh: float = Field(0.30, ge=0, description="price of energy")
    price_per_hour: float = Field(0.0, ge=0, description="price of the machine, for a rented one")
    data: DataSettings = Field(DataSettings(), description="what to make of the text")
