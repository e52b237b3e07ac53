"""Adapters as `peft` stores them: what transformers, vLLM, Unsloth and TRL load and save.

Format: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, JsonValue

from settle.base.errors import FormatError, malformed_is_format_error
from settle.base.files import read_json, write_json
from settle.base.python_command import shell_line
from settle.formats import AdapterContents, AdapterWeights, Format, ModelLayout, Weights, folder_to_write
from settle.formats.gguf.metadata import text
from settle.formats.safetensors import read_safetensors, write_safetensors

CONFIG, FILE = "adapter_config.json", "adapter_model.safetensors"
BASE_SHA256 = "settle.base_sha256"


@dataclass(frozen=True)
class PeftFolder:
    """config: adapter_config.json. tensors: by their names in the file. base, base_sha256: what it was trained on."""

    config: Mapping[str, JsonValue]
    tensors: Mapping[str, np.ndarray]
    base: str | None
    base_sha256: str | None


class Peft(Format):
    """A folder: adapter_config.json and adapter_model.safetensors."""

    suffix: ClassVar[str] = ""
    holds: ClassVar[Literal["model", "adapter"]] = "adapter"
    for_llama_cpp: ClassVar[bool] = False
    dtype: Literal["f32", "f16", "bf16"] = Field("f32", description="type of the tensors")

    def read(self, path: Path) -> Weights:
        with malformed_is_format_error(str(path)):
            return Weights(read_safetensors(Path(path) / FILE).tensors, read_peft(path).config)

    def write_adapter(self, path: Path, adapter: AdapterContents) -> Path:
        return export_peft(adapter.architecture, adapter.adapter, path, self.dtype)

    def default_path(self, name: str) -> Path:
        return Path(f"{name}-adapter")

    def next_line(self, path: Path, name: str) -> str:
        return shell_line("vllm", "serve", "BASE", "--enable-lora", "--lora-modules", f"{name}={path}")


def export_peft(part: ModelLayout, adapter: AdapterWeights, path: Path, dtype: str = "f32") -> Path:
    """Write an adapter as a folder that `PeftModel.from_pretrained` loads. Returns the folder.

    part: the architecture of its base. Raises FormatError for modules the base does not have, ResourceError on a full
    disk.
    """
    path = Path(path)
    adapter.parameters(part)
    config: dict[str, JsonValue] = {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "inference_mode": True,
        **adapter.peft_config(part),
    }
    with folder_to_write(path):
        write_json(path / CONFIG, config)
    card = {BASE_SHA256: adapter.base_sha256} if adapter.base_sha256 else {}
    write_safetensors(path / FILE, adapter.peft_state(part), dtype, card)
    return path


def read_peft(path: Path) -> PeftFolder:
    """Read a folder that peft, Unsloth or settle saved an adapter to. Raises FormatError for any other folder."""
    path = Path(path)
    if not (path / CONFIG).is_file():
        raise FormatError(f"there is no {CONFIG} in {path}", "give the folder that the adapter was saved to")
    if not (path / FILE).is_file():
        pickled = (path / "adapter_model.bin").exists()
        what = "holds its weights as a pickle, which can run code" if pickled else f"has no {FILE}"
        raise FormatError(f"{path} {what}", "save it again with safe_serialization=True")
    config = read_json(path / CONFIG)
    if not isinstance(config, dict):
        raise FormatError(f"{path / CONFIG} holds no settings", "save the adapter again")
    stored = read_safetensors(path / FILE)
    # Gemma 3 inside the class that also sees pictures, as Unsloth loads it
    inside = re.compile(r"(base_model\.model\.)(model\.)?language_model\.(model\.)?(?=layers\.)")
    tensors = {inside.sub(r"\1model.", name): tensor.load() for name, tensor in stored.tensors.items()}
    return PeftFolder(config, tensors, text(config, "base_model_name_or_path"), text(stored.metadata, BASE_SHA256))
