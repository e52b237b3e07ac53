"""What `settle plan` reports: a run on described machines, its money, and when a model of one's own pays off."""

import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from settle.base.errors import UsageError
from settle.base.settings import Settings


class PlanSettings(Settings):
    """What is planned, on which machine, at which prices."""

    machine: str | None = Field(None, description='machine, such as "8x h100 sxm"; default: this one')
    params: str | None = Field(None, description="weights of the model, such as 1.5b, where it has no name")
    active: str | None = Field(None, description="weights that a token uses, in a mixture of experts")
    tokens: str | None = Field(None, description="tokens to train on, such as 30b")
    rows: str | None = Field(None, description="examples to tune on, such as 5000 or 20k")
    row_tokens: int = Field(512, gt=0, le=1 << 24, description="tokens of an example, in the mean")
    epochs: float = Field(3.0, gt=0, description="times that every example is seen")
    method: Literal["lora", "qlora", "full"] | None = Field(None, description="default: the finest that fits")
    rank: int = Field(16, gt=0, le=4096, description="rank of the adapters")
    sequence: int = Field(4096, gt=0, le=1 << 24, description="tokens of a sequence")
    batch_tokens: str | None = Field(None, description="tokens of a global batch; default: as runs of the size use")
    precision: Literal["bf16", "fp8", "fp4"] = Field("bf16", description="number format of the matrix products")
    failures: float | None = Field(None, gt=0, description="interruptions a thousand device-days, where known")
    served_tokens: str | None = Field(None, description="tokens to serve in the model's life, such as 10t")
    by: datetime.date | None = Field(None, description="date to have finished by, when started today")
    by_hand: bool = Field(False, description="a person restarts the run after a failure")
    price_per_kwh: float | None = Field(
        None, ge=0, description="price of a kWh in dollars; default: dated, with a range"
    )
    price_per_hour: float | None = Field(None, ge=0, description="rent of a device-hour in dollars; default: dated")
    against: str | None = Field(None, description="model of an API to pay off against, such as gpt-5-mini")
    api_price: str | None = Field(None, description="its price instead: dollars a million input,output tokens")
    requests_per_day: float = Field(1000.0, gt=0, description="requests a day")
    input_tokens: float = Field(800.0, gt=0, description="tokens of a prompt")
    output_tokens: float = Field(250.0, gt=0, description="tokens of an answer")
    cached: float = Field(0.0, ge=0, le=1, description="share of a prompt that the API has seen before")
    texts: int = Field(1, gt=0, le=4096, description="requests answered at once, in pay-off")
    speed: float | None = Field(None, gt=0, description="tokens per second it writes, all texts together, as measured")
    prompt_speed: float | None = Field(None, gt=0, description="tokens per second it reads, where measured")
    purchase: float = Field(0.0, ge=0, description="price of the machine in dollars, where it has to be bought")
    picture: Path | None = Field(None, description="file to draw the plan into, .png")

    @field_validator("picture")
    @classmethod
    def _png(cls, path: Path | None) -> Path | None:
        if path is not None and path.suffix.lower() != ".png":
            raise UsageError(f"{path.name} is no PNG", "name a file that ends with .png")
        return path

    @field_validator("by")
    @classmethod
    def _in_the_future(cls, by: datetime.date | None) -> datetime.date | None:
        if by is not None and by <= datetime.date.today():
            raise UsageError(f"{by} is not in the future", "give a later date to --by")
        return by
