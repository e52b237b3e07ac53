"""LoRA (arXiv:2106.09685), with the scale of rsLoRA (arXiv:2312.03732) and the rates of LoRA+ (arXiv:2402.12354).

Letters: r rank, I inputs and O outputs of a linear.
"""

import math
from collections.abc import Iterable, Mapping
from typing import ClassVar, Self

import numpy as np
from pydantic import Field, JsonValue, field_validator

from settle.formats import LoraPairs, to_float32
from settle.model.adapters import PREFIX, TARGET_NAMES, Adapter, TargetName, matching
from settle.model.adapters._lora_of_peft import require_plain, uniform
from settle.model.decoder import Decoder
from settle.model.layers.linear_adapter import LowRank

NARROW = 512  # hidden width of a base below which the learning rate is raised
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


class LoRA(Adapter):
    """W + alpha / r · B A, where only A (r, I) and B (O, r) are trained."""

    ENDINGS: ClassVar[tuple[str, ...]] = (DOWN, UP)
    magnitude: ClassVar[bool] = False

    rank: int = Field(16, gt=0, description="rank of the low-rank update of each linear layer")
    alpha: float = Field(32.0, gt=0, description="scale of the update, which is multiplied by alpha / rank")
    rslora: bool = Field(False, description="scale by alpha / √rank instead (rsLoRA)")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout rate on the inputs of A during training")
    targets: list[str] | TargetName = Field(
        "all-linear",
        description="names of the linear layers to adapt, separated by commas; or all-linear, or last-third: those of "
        "the last third of the layers",
    )
    lr_ratio: float = Field(1.0, gt=0, description="learning rate of B divided by that of A; LoRA+ recommends 16")

    @field_validator("targets", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """Names with commas between them, as a command line gives them."""
        return value.split(",") if isinstance(value, str) and value not in TARGET_NAMES else value

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def rate(self, width: int) -> float:
        """Larger below `NARROW`: what a step of Adam changes of a product falls with the width (Yang et al. 2022), so
        that the usual rate teaches a base of width 64 next to nothing."""
        return self.LEARNING_RATE * max(1.0, NARROW / width)

    def targeted(self, linears: Iterable[str]) -> list[str]:
        return matching(linears, self.targets)

    def beside(self, name: str, inputs: int, outputs: int) -> LowRank:
        return LowRank(inputs, outputs, self.rank, self.scale, self.dropout, self.magnitude)

    def kept_per_token(self, name: str, inputs: int, outputs: int) -> int:
        return self.rank

    def apply(self, model: Decoder, seed: int = 0) -> list[str]:
        chosen = super().apply(model, seed)
        model.lr_scales = {"lora_B": self.lr_ratio}
        return chosen

    def peft_config(self, targets: list[str]) -> dict[str, JsonValue]:
        return {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": int(self.alpha) if self.alpha == int(self.alpha) else self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": [*targets],
            "use_rslora": self.rslora,
            "use_dora": self.magnitude,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
        }

    @classmethod
    def from_peft(
        cls, config: Mapping[str, JsonValue], tensors: Mapping[str, np.ndarray]
    ) -> tuple[Self, Mapping[str, np.ndarray]] | None:
        if config.get("peft_type") != "LORA" or bool(config.get("use_dora")) != cls.magnitude:
            return None
        require_plain(config)
        state, alpha, rank = uniform(tensors, config)
        targets = [name.removeprefix(PREFIX).removesuffix(DOWN) for name in state if name.endswith(DOWN)]
        rslora, dropout = bool(config.get("use_rslora")), config.get("lora_dropout") or 0.0
        return cls.model_validate(
            {"rank": rank, "alpha": alpha, "rslora": rslora, "dropout": dropout, "targets": targets}
        ), state

    def lora_pairs(self, tensors: Mapping[str, np.ndarray]) -> LoraPairs | None:
        modules = [name.removeprefix(PREFIX).removesuffix(DOWN) for name in tensors if name.endswith(DOWN)]
        return LoraPairs(
            self.scale * self.rank,
            {m: (to_float32(tensors[PREFIX + m + DOWN]), to_float32(tensors[PREFIX + m + UP])) for m in modules},
        )

    @classmethod
    def of_pairs(cls, pairs: LoraPairs) -> tuple[Self, dict[str, np.ndarray]]:
        """The inverse of `lora_pairs`, for pairs of one rank."""
        ranks = {len(down) for down, _ in pairs.pairs.values()}
        method = cls(rank=max(ranks), alpha=pairs.alpha, targets=[*pairs.pairs])
        downs = {PREFIX + module + DOWN: down for module, (down, _) in pairs.pairs.items()}
        return method, downs | {PREFIX + module + UP: up for module, (_, up) in pairs.pairs.items()}
