"""LoRA (arXiv:2106.09685), with the scale of rsLoRA (arXiv:2312.03732) and the rates of LoRA+ (arXiv:2402.12354)."""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator

from settle.model.adapters import Adapter, matching
from settle.model.decoder import Decoder
from settle.model.layers.low_rank import LowRank


class LoRA(Adapter):
    """W + alpha / r · B A, where only A (r, I) and B (O, r) are trained."""

    magnitude: ClassVar[bool] = False

    rank: int = Field(16, gt=0, description="numbers that a linear's change goes through")
    alpha: float = Field(32.0, gt=0, description="the change is scaled by alpha / rank")
    rslora: bool = Field(False, description="scale by alpha / √rank instead")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of A's inputs zeroed in training")
    targets: list[str] | Literal["all-linear"] = Field("all-linear", description="names of linears, or all of them")
    lr_ratio: float = Field(1.0, gt=0, description="rate of B over the rate of A; LoRA+ found 16")

    @field_validator("targets", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """Names with commas between them, as a command line gives them."""
        return value.split(",") if isinstance(value, str) and value != "all-linear" else value

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def apply(self, model: Decoder, seed: int = 0) -> list[str]:
        chosen = matching(model, self.targets)
        model.freeze()
        random = torch.Generator().manual_seed(seed)
        for linear in chosen.values():
            pair = LowRank(linear.inputs, linear.outputs, self.rank, self.scale, self.dropout, self.magnitude)
            # as PEFT begins: A uniform within 1 / √I, B zero, so that nothing changes
            with torch.no_grad():
                pair.lora_A.uniform_(-1, 1, generator=random).div_(math.sqrt(linear.inputs))
                if pair.lora_magnitude_vector is not None:
                    weight = linear.frozen.dense(torch.float32)
                    pair.lora_magnitude_vector.copy_(torch.linalg.vector_norm(weight, dim=1))
            linear.adapter = pair.to(model.device).train(model.training)
        model.lr_scales = {"lora_B": self.lr_ratio}
        return list(chosen)
