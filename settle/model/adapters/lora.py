"""LoRA (arXiv:2106.09685), with the scale of rsLoRA (arXiv:2312.03732) and the rates of LoRA+ (arXiv:2402.12354).

Letters: r rank, I inputs and O outputs of a linear.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import numpy as np
from pydantic import Field, JsonValue, field_validator

from settle.base.errors import FormatError
from settle.base.line_child import ChildEnded, FencedChild
from settle.formats import LoraPairs, to_float32
from settle.model.adapters import PREFIX, TARGET_NAMES, Adapter, Linears, TargetName, matching
from settle.model.adapters._peft_experts import ONE, ORDER, apart
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
        """Return the default rate, larger below `NARROW`.

        What a step of Adam changes of a product falls with the width (Yang et al. 2022), so that the usual rate teaches
        a base of width 64 next to nothing.
        """
        return self.LEARNING_RATE * max(1.0, NARROW / width)

    def targeted(self, linears: Linears) -> list[str]:
        return matching(linears, self.targets, {name for name, linear in linears.items() if linear.only_named})

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

    def widen(self, config: dict[str, JsonValue], module: str, times: int) -> None:
        alpha = self.alpha * (math.sqrt(times) if self.rslora else times)  # the same scale, with more ranks
        for key, value in (("rank_pattern", times * self.rank), ("alpha_pattern", alpha)):
            patterns = config.setdefault(key, {})
            if isinstance(patterns, dict):
                patterns[module] = value

    @classmethod
    def from_peft(
        cls, config: Mapping[str, JsonValue], tensors: Mapping[str, np.ndarray]
    ) -> tuple[Self, Mapping[str, np.ndarray]] | None:
        if config.get("peft_type") != "LORA" or bool(config.get("use_dora")) != cls.magnitude:
            return None
        require_plain(config)
        state, alpha, rank = uniform(_experts_apart(tensors, config), config)
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
        """Invert `lora_pairs`, for pairs of one rank."""
        ranks = {len(down) for down, _ in pairs.pairs.values()}
        method = cls(rank=max(ranks), alpha=pairs.alpha, targets=[*pairs.pairs])
        downs = {PREFIX + module + DOWN: down for module, (down, _) in pairs.pairs.items()}
        return method, downs | {PREFIX + module + UP: up for module, (_, up) in pairs.pairs.items()}


MAGNITUDE = ".lora_magnitude_vector"
# Keys of adapter_config.json that, set to anything else, make of the tensors something other than W + scale · B A.
# init_lora_weights is apart: those that change the base itself make an adapter that does not fit the base as it is.
NEUTRAL: dict[str, tuple[JsonValue, ...]] = {
    "bias": ("none",), "lora_bias": (False,), "fan_in_fan_out": (False,), "modules_to_save": ([],),
    "layer_replication": ([],), "trainable_token_indices": ([], {}),
    "use_qalora": (False,), "alora_invocation_tokens": ([],), "use_bdlora": (False,), "arrow_config": (),
    "kasa_config": (), "monteclora_config": (),
}  # fmt: skip
BASE_CHANGING = ("pissa", "olora", "corda", "lora_ga", "loftq")


def require_plain(config: Mapping[str, JsonValue]) -> None:
    """Raise FormatError for what is more than W + scale · B A on linears, naming the setting."""
    for key, neutral in NEUTRAL.items():
        value = config.get(key)
        if value is not None and value not in neutral:
            raise FormatError(
                f"the adapter was trained with {key} = {value!r}, which is more than LoRA on linears",
                "merge it with peft (merge_and_unload) and take the merged model",
            )
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(BASE_CHANGING):
        raise FormatError(
            f"the adapter was started with {start}, which changes the base too: it does not fit the base as it is",
            "save it with path_initial_model_for_weight_conversion",
        )


def uniform(
    stored: Mapping[str, np.ndarray], config: Mapping[str, JsonValue]
) -> tuple[dict[str, np.ndarray], float, int]:
    """Return the tensors with one rank, the alpha that gives each module its scale, and the rank.

    Modules of smaller rank (`rank_pattern`) are padded with zeros and `alpha_pattern` is folded into B; both are exact.
    Raises FormatError for a pair whose halves do not fit each other.
    """
    tensors = {_named(name): tensor for name, tensor in stored.items()}
    downs = [name for name in tensors if name.startswith(PREFIX) and name.endswith(DOWN)]
    for name in downs:
        shape, other = tensors[name].shape, tensors.get(name.replace(DOWN, UP), tensors[name].T).shape
        if len(shape) != 2 or len(other) != 2 or shape[0] != other[1] or not shape[0]:
            module = name.removeprefix(PREFIX).removesuffix(DOWN)
            raise FormatError(f"the adapter's pair for {module} has the shapes {shape} and {other}", "save it again")
    largest = max((len(tensors[name]) for name in downs), default=0)
    power = 0.5 if config.get("use_rslora") else 1.0
    default = _number("lora_alpha", config.get("lora_alpha"), 8.0)
    modules = {name: ONE.sub(r"\1", name.removeprefix(PREFIX).removesuffix(DOWN)) for name in downs}
    of_modules = _patterned("alpha_pattern", [*dict.fromkeys(modules.values())], config, default)
    alphas = {name: of_modules[module] for name, module in modules.items()}
    wanted = {name: alphas[name] / len(tensors[name]) ** power for name in downs}
    rank = int(_number("r", config.get("r"), largest))
    alpha = default if largest == rank else max(wanted.values(), default=1) * largest**power
    for name in downs:
        down, up = tensors[name], tensors.get(name.replace(DOWN, UP))
        if up is None:
            continue  # the missing half is named when the adapter is put together
        missing = largest - len(down)
        factor = wanted[name] / (alpha / largest**power)
        if missing:
            tensors[name] = np.pad(down, ((0, missing), (0, 0)))
            up = np.pad(up, ((0, 0), (0, missing)))
        if not math.isclose(factor, 1.0, rel_tol=1e-9):
            up = to_float32(up * np.float32(factor))
        tensors[name.replace(DOWN, UP)] = up
    return tensors, alpha, max(1, largest)


def _named(name: str) -> str:
    """Return a tensor's name without that of the adapter in it ("default")."""
    name = re.sub(r"\.(lora_[AB])\.[^.]+\.weight$", r".\1.weight", name)
    return re.sub(rf"({MAGNITUDE})\..*$", r"\1", name)


def _experts_apart(tensors: Mapping[str, np.ndarray], config: Mapping[str, JsonValue]) -> Mapping[str, np.ndarray]:
    """Return the tensors with a pair for each expert, where `target_parameters` names experts. Raises FormatError."""
    targets = config.get("target_parameters") or []
    if not isinstance(targets, list) or not all(str(target).endswith((*ORDER, ".weight")) for target in targets):
        raise FormatError(f"the adapter's target_parameters are {targets!r:.60}", "merge it with peft")
    tensors = {_named(name): tensor for name, tensor in tensors.items()}
    places = [str(target).rpartition(".") for target in targets]
    modules = {name.removeprefix(PREFIX).removesuffix(DOWN).replace(".base_layer", "") for name in tensors}
    found = [
        f"{module}.{own}"
        for module in sorted(modules)
        for container, _, own in places
        if own in ORDER and f".{module}".endswith(f".{container or 'experts'}")
    ]
    ranks = _patterned("rank_pattern", found, config, _number("r", config.get("r"), 8.0))
    return apart(tensors, {name: int(rank) for name, rank in ranks.items()}, PREFIX, (DOWN, UP))


def _patterned(key: str, modules: Sequence[str], config: Mapping[str, JsonValue], default: float) -> dict[str, float]:
    """Return a number for each module: that of the first pattern under `key` that matches it. Raises FormatError."""
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise FormatError(f"the adapter's {key} is {patterns!r:.40}", "save it again")
    if not patterns or not modules:
        return dict.fromkeys(modules, default)
    child = FencedChild("settle.model.pattern_child")
    try:
        places = child.ask([[*patterns], modules])
    except ChildEnded as e:
        raise FormatError(f"the patterns in the adapter's {key} do not end: {e}", "save it again") from None
    finally:
        child.close()
    if not isinstance(places, list):
        raise FormatError(f"the adapter's {key} is no regular expression: {places}", "save it again")
    numbers = [_number(key, number, default) for number in patterns.values()]
    return {name: default if i is None else numbers[i] for name, i in zip(modules, places, strict=True)}


def _number(key: str, value: JsonValue, default: float) -> float:
    """Return a positive number; the default where there is none. Raises FormatError for anything else."""
    if value is None or value == 0:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise FormatError(f"the adapter's {key} is {value!r:.40}", "save it again")
    return float(value)
