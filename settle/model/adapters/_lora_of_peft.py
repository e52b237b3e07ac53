"""LoRA and DoRA as PEFT, Unsloth and TRL save them, brought to one rank and one scale.

Letters: r rank, I inputs and O outputs of a linear.
"""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import JsonValue

from settle.base.errors import FormatError
from settle.base.fenced_child import ChildEnded, FencedChild
from settle.formats import to_float32
from settle.model.adapters import PREFIX

DOWN, UP, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
# Keys of adapter_config.json that, set to anything else, make of the tensors something other than W + scale · B A.
# init_lora_weights is apart: those that change the base itself make an adapter that does not fit the base as it is.
NEUTRAL: dict[str, tuple[JsonValue, ...]] = {
    "bias": ("none",), "lora_bias": (False,), "fan_in_fan_out": (False,), "modules_to_save": ([],),
    "layer_replication": ([],), "trainable_token_indices": ([], {}), "target_parameters": ([],),
    "use_qalora": (False,), "alora_invocation_tokens": ([],), "use_bdlora": (False,), "arrow_config": (),
    "kasa_config": (), "monteclora_config": (),
}  # fmt: skip
BASE_CHANGING = ("pissa", "olora", "corda", "lora_ga", "loftq")


def require_plain(config: Mapping[str, JsonValue]) -> None:
    """Raises FormatError for what is more than W + scale · B A on linears, naming the setting."""
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
    """The tensors with one rank, the alpha that gives each module its scale, and the rank.

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
    alphas = _alphas(downs, config, default)
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
    """A tensor's name without that of the adapter in it ("default")."""
    name = re.sub(r"\.(lora_[AB])\.[^.]+\.weight$", r".\1.weight", name)
    return re.sub(rf"({MAGNITUDE})\..*$", r"\1", name)


def _alphas(downs: Sequence[str], config: Mapping[str, JsonValue], default: float) -> dict[str, float]:
    """The alpha of each module: that of the first pattern that matches it. Raises FormatError."""
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise FormatError(f"the adapter's alpha_pattern is {patterns!r:.40}", "save it again")
    if not patterns:
        return dict.fromkeys(downs, default)
    modules = [name.removeprefix(PREFIX).removesuffix(DOWN) for name in downs]
    child = FencedChild("settle.model.adapters._pattern_child")
    try:
        places = child.ask([[*patterns], modules])
    except ChildEnded as e:
        raise FormatError(f"the patterns in the adapter's alpha_pattern do not end: {e}", "save it again") from None
    finally:
        child.close()
    if not isinstance(places, list):
        raise FormatError(f"the adapter's alpha_pattern is no regular expression: {places}", "save it again")
    alphas = [_number("alpha_pattern", alpha, default) for alpha in patterns.values()]
    return {name: default if i is None else alphas[i] for name, i in zip(downs, places, strict=True)}


def _number(key: str, value: JsonValue, default: float) -> float:
    """A positive number; the default where there is none. Raises FormatError for anything else."""
    if value is None or value == 0:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise FormatError(f"the adapter's {key} is {value!r:.40}", "save it again")
    return float(value)
