"""Adapters as `peft` stores them: what transformers, vLLM, Unsloth and TRL load and save.

Format: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from settle.base.errors import FormatError, ResourceError
from settle.base.run import read_json, write_json
from settle.formats import Format, Weights, to_float32
from settle.formats._adapter import DOWN, MAGNITUDE, PREFIX, UP, Adapter, targets
from settle.formats.safetensors import read_safetensors, write_safetensors

CONFIG, FILE = "adapter_config.json", "adapter_model.safetensors"
BASE_SHA256 = "settle.base_sha256"
# Keys of adapter_config.json that, set to anything else, make of the tensors something other than W + scale · B A.
# init_lora_weights is apart: those that change the base itself make an adapter that does not fit the base as it is.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none",), "lora_bias": (False,), "fan_in_fan_out": (False,), "modules_to_save": ([],),
    "layer_replication": ([],), "trainable_token_indices": ([], {}), "target_parameters": ([],),
    "use_qalora": (False,), "alora_invocation_tokens": ([],), "use_bdlora": (False,), "arrow_config": (),
    "kasa_config": (), "monteclora_config": (),
}  # fmt: skip
BASE_CHANGING = ("pissa", "olora", "corda", "lora_ga", "loftq")


class Peft(Format):
    """A folder: adapter_config.json and adapter_model.safetensors."""

    suffix: ClassVar[str] = ""
    holds: ClassVar[Literal["model", "adapter"]] = "adapter"
    dtype: Literal["f32", "f16", "bf16"] = Field("f32", description="type of the tensors")

    def read(self, path: Path) -> Weights:
        adapter = read_peft(path)
        return Weights(read_safetensors(Path(path) / FILE).tensors, {"alpha": adapter.alpha, "rank": adapter.rank})

    def write(self, path: Path, part: Any, weights: Any, tokenizer: Any, metadata: Mapping[str, Any]) -> Path:
        return export_peft(part, weights, path, self.dtype)


def export_peft(part: Any, adapter: Adapter, path: Path, dtype: str = "f32") -> Path:
    """Write an adapter as a folder that `PeftModel.from_pretrained` loads. Returns the folder.

    part: the architecture of its base. Raises FormatError for modules the base does not have, ResourceError on a full
    disk.
    """
    path = Path(path)
    adapter.parameters(part)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": targets(adapter, part),
        "use_rslora": adapter.rslora,
        "use_dora": adapter.dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / CONFIG, config)
    except OSError as e:
        raise ResourceError(f"cannot write to {path}: {e.strerror}", "choose another place with --out") from None
    card = {BASE_SHA256: adapter.base_sha256} if adapter.base_sha256 else {}
    write_safetensors(path / FILE, adapter.state, dtype, card)
    return path


def read_peft(path: Path) -> Adapter:
    """An adapter saved by peft, Unsloth or settle, with one rank and one scale whatever it was trained with.

    Modules of smaller rank (`rank_pattern`) are padded with zeros and `alpha_pattern` is folded into B; both are
    exact. Raises FormatError for what is not a plain LoRA or DoRA over linears, naming the setting.
    """
    path = Path(path)
    if not (path / CONFIG).is_file():
        raise FormatError(f"there is no {CONFIG} in {path}", "give the folder that the adapter was saved to")
    if not (path / FILE).is_file():
        pickled = (path / "adapter_model.bin").exists()
        what = "holds its weights as a pickle, which can run code" if pickled else f"has no {FILE}"
        raise FormatError(f"{path} {what}", "save it again with safe_serialization=True")
    config = read_json(path / CONFIG)
    _refuse_others(config if isinstance(config, dict) else {}, path)
    stored = read_safetensors(path / FILE)
    tensors = {re.sub(r"\.(lora_[AB])\.[^.]+\.weight$", r".\1.weight", n): t for n, t in stored.tensors.items()}
    tensors = {re.sub(rf"({MAGNITUDE})\..*$", r"\1", n): t for n, t in tensors.items()}
    # Gemma 3 inside the class that also sees pictures, as Unsloth loads it
    inside = re.compile(re.escape(PREFIX) + r"(model\.)?language_model\.(model\.)?(?=layers\.)")
    tensors = {inside.sub(f"{PREFIX}model.", n): t for n, t in tensors.items()}
    state, alpha = _uniform({name: tensor.load() for name, tensor in tensors.items()}, config)
    return Adapter(
        state=state,
        alpha=alpha,
        rslora=bool(config.get("use_rslora")),
        dropout=float(config.get("lora_dropout") or 0.0),
        base=config.get("base_model_name_or_path"),
        base_sha256=stored.metadata.get(BASE_SHA256),
    )


def _refuse_others(config: Mapping[str, Any], path: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise FormatError(f"{path} is an adapter of type {config.get('peft_type')!r}", "LoRA and DoRA are known")
    for key, neutral in NEUTRAL.items():
        value = config.get(key)
        if value is not None and value not in neutral:
            raise FormatError(
                f"{path} was trained with {key} = {value!r}, which is more than LoRA on linears",
                "merge it with peft (merge_and_unload) and take the merged model",
            )
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(BASE_CHANGING):
        raise FormatError(
            f"{path} was started with {start}, which changes the base too: it does not fit the base as it is",
            "save it with path_initial_model_for_weight_conversion",
        )


def _uniform(tensors: dict[str, np.ndarray], config: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], float]:
    """The tensors with one rank and the alpha that gives each module its scale."""
    downs = [name for name in tensors if name.startswith(PREFIX) and name.endswith(DOWN)]
    largest = max((len(tensors[name]) for name in downs), default=0)
    power = 0.5 if config.get("use_rslora") else 1.0
    default = float(config.get("lora_alpha") or 8)
    alphas = config.get("alpha_pattern") or {}
    wanted = {}
    for name in downs:
        module = name.removeprefix(PREFIX).removesuffix(DOWN)
        key = next((k for k in alphas if re.match(rf"(.*\.)?({k})$", module)), None)
        wanted[name] = (default if key is None else float(alphas[key])) / len(tensors[name]) ** power
    alpha = default if largest == int(config.get("r") or largest) else max(wanted.values(), default=1) * largest**power
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
    return tensors, alpha
