"""IA³ (arXiv:2205.05638), a whole adapter in one file: what another package would register as `settle.model.adapters`.

Keys, values and the input of the feed-forward's last linear are multiplied by vectors that are trained.
"""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import Field, JsonValue
from torch import Tensor, nn

from settle.base.errors import FormatError
from settle.model.adapters import PREFIX, Adapter, matching
from settle.model.layers.frozen_weights import Frozen
from settle.model.layers.linear_adapter import LinearAdapter, LinearProduct

ENDING = ".ia3_l"


class Scales(LinearAdapter):
    """Factors of a linear's inputs, (1, I), or of its outputs, (O, 1)."""

    def __init__(self, inputs: int, outputs: int, feedforward: bool) -> None:
        super().__init__()
        self.feedforward = feedforward
        self.ia3_l = nn.Parameter(torch.empty((1, inputs) if feedforward else (outputs, 1)))

    @torch.no_grad()
    def initialise(self, weight: Frozen, random: torch.Generator) -> None:
        self.ia3_l.fill_(1.0)

    def forward(self, x: Tensor, product: LinearProduct) -> Tensor:
        factor = self.ia3_l.flatten().to(x.dtype)
        return product(x * factor) if self.feedforward else product(x) * factor

    def merged(self, weight: Tensor) -> Tensor:
        return weight * self.ia3_l.detach().float()

    def merged_bias(self, bias: Tensor) -> Tensor:
        return bias if self.feedforward else bias * self.ia3_l.detach().float().flatten()


class IA3(Adapter):
    """Vectors that scale keys, values and what the feed-forward's gate lets through."""

    ENDINGS: ClassVar[tuple[str, ...]] = (ENDING,)
    LEARNING_RATE: ClassVar[float] = 3e-3

    targets: list[str] = Field(["k_proj", "v_proj", "qkv_proj", "down_proj"], description="names of linears")
    feedforward: list[str] = Field(["down_proj"], description="those of them whose inputs are scaled")

    def chosen(self, linears: Iterable[str]) -> list[str]:
        names = list(linears)
        return matching(names, [t for t in self.targets if any(f".{name}".endswith(f".{t}") for name in names)])

    def beside(self, name: str, inputs: int, outputs: int) -> Scales:
        return Scales(inputs, outputs, self._scales_inputs(name))

    def kept_per_token(self, name: str, inputs: int, outputs: int) -> int:
        return 2 * inputs if self._scales_inputs(name) else outputs

    def peft_config(self, targets: list[str]) -> dict[str, JsonValue]:
        ends = {target.rpartition(".")[2] for target in targets}
        return {
            "peft_type": "IA3",
            "target_modules": [*targets],
            "feedforward_modules": [t for t in self.feedforward if t in ends],
            "fan_in_fan_out": False,
            "init_ia3_weights": True,
        }

    @classmethod
    def from_peft(
        cls, config: Mapping[str, JsonValue], tensors: Mapping[str, np.ndarray]
    ) -> tuple[Self, Mapping[str, np.ndarray]] | None:
        if config.get("peft_type") != "IA3":
            return None
        if config.get("fan_in_fan_out") or config.get("modules_to_save"):
            raise FormatError("the adapter was trained with more than IA3 on linears", "merge it with peft")
        targets = [name.removeprefix(PREFIX).removesuffix(ENDING) for name in tensors]
        return cls.model_validate({"targets": targets, "feedforward": config.get("feedforward_modules") or []}), tensors

    def _scales_inputs(self, name: str) -> bool:
        return name.rpartition(".")[2] in self.feedforward
