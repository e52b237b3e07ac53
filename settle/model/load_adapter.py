"""Adapters that were trained: read from files, put beside the linears of their base, described for files."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from pydantic import JsonValue

from settle.base.errors import FormatError, malformed_is_format_error
from settle.formats import LoraPairs, ModelLayout
from settle.formats.lora_gguf import read_pairs
from settle.formats.peft import read_peft
from settle.model.adapters import PREFIX, Adapter, load, state
from settle.model.adapters.lora import LoRA
from settle.model.architectures import Architecture
from settle.model.decoder import Decoder
from settle.model.pretrained import Pretrained


@dataclass(frozen=True)
class TrainedAdapter:
    """What training an adapter made, and what it belongs to.

    state: PEFT's name → numbers. base: name of the model it was trained on; base_sha256: of that model's weights.
    Raises FormatError when the state is not what the method trains for each of its linears.
    """

    method: Adapter
    state: Mapping[str, np.ndarray]
    base: str | None = None
    base_sha256: str | None = None

    def __post_init__(self) -> None:
        halves: dict[str, set[str]] = defaultdict(set)
        for name in self.state:
            module, ending = _split(name, self.method.ENDINGS)
            if not ending:
                raise FormatError(f"{name} is no tensor of a {self.name} adapter", "save the adapter again")
            halves[module].add(ending)
        for module, endings in halves.items():
            if missing := set(self.method.ENDINGS) - endings:
                raise FormatError(f"the adapter lacks {module}{min(missing)}", "save the adapter again")
        if not halves:
            raise FormatError("the adapter is empty", "an adapter changes at least one module")

    @classmethod
    def of_model(cls, model: Decoder, method: Adapter, base: str, base_sha256: str) -> Self:
        """Collect what a model holds of an adapter."""
        numbers = {name: tensor.detach().float().cpu().numpy() for name, tensor in state(model).items()}
        return cls(method, numbers, base, base_sha256)

    @property
    def name(self) -> str:
        """The method's."""
        return type(self.method).__name__

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The linears that it changes."""
        return tuple(dict.fromkeys(_split(name, self.method.ENDINGS)[0] for name in self.state))

    @cached_property
    def lora(self) -> LoraPairs | None:
        """What llama.cpp has to add to the base as it serves it; None when it cannot."""
        return self.method.lora_pairs(self.state)

    def peft_config(self, architecture: ModelLayout) -> dict[str, JsonValue]:
        """Return what PEFT needs to know of it, but for its base."""
        return self.method.peft_config(_targets(self.modules, architecture))

    def require_base(self, sha256: str | None, name: str) -> None:
        """Raise FormatError when the adapter says that it was trained on other weights than these."""
        if self.base_sha256 and sha256 and self.base_sha256 != sha256:
            raise FormatError(
                f"the adapter was trained on {self.base or 'a model'} with sha256 {self.base_sha256[:12]}…, "
                f"and {name} has {sha256[:12]}…",
                f"take the base it was trained on, or train it again on {name}",
            )

    def parameters(self, architecture: ModelLayout) -> dict[str, str]:
        """Map each module to the parameter that it changes. Raises FormatError naming a module the model has not."""
        by_hf = {hf: ours for ours, hf in architecture.hf_names().items()}
        by_module: dict[str, str] = {}
        for module in self.modules:
            if f"{module}.weight" not in by_hf:
                raise FormatError(
                    f"the adapter is for {module}, which a {architecture.model_type} of this size does not have",
                    "take the base it was trained on",
                )
            by_module[module] = by_hf[f"{module}.weight"]
        return by_module


def open_adapter(folder: Path) -> TrainedAdapter:
    """Open an adapter saved by peft, Unsloth or settle. Raises FormatError for another folder or an unknown method."""
    methods = Adapter.parts()
    with malformed_is_format_error(str(folder)):
        saved = read_peft(folder)
        for method in methods.values():
            try:
                read = method.from_peft(saved.config, saved.tensors)
            except FormatError as e:
                raise FormatError(f"{folder}: {e.what}", e.fix) from None
            if read is not None:
                return TrainedAdapter(*read, saved.base, saved.base_sha256)
    known = ", ".join(method.__name__ for method in methods.values())
    raise FormatError(f"{folder} is an adapter of type {saved.config.get('peft_type')!r}", f"known are: {known}")


def adapter_of_gguf(path: Path, architecture: Architecture) -> TrainedAdapter:
    """Read the adapter in a file of llama.cpp's. Raises FormatError for one that is not supported here."""
    return TrainedAdapter(*LoRA.of_pairs(read_pairs(path, architecture)))


def attach(model: Decoder, adapter: TrainedAdapter) -> None:
    """Freeze `model` and put the adapter next to its linears, whoever trained it.

    Raises UsageError for a module that the model has not, FormatError for shapes that do not fit.
    """
    adapter.method.apply(model)
    load(model, {name: torch.as_tensor(tensor) for name, tensor in adapter.state.items()})


def adapted(base: Pretrained, adapter: TrainedAdapter) -> Decoder:
    """Load the base with an adapter, in fp32 and in evaluation mode, its own quantized blocks kept as they are.

    Raises FormatError when the adapter says that it was trained on other weights.
    """
    if adapter.base_sha256:
        adapter.require_base(base.source.sha256, base.name)
    adapter.parameters(base.part)
    model = base.load(quantize="as-is" if base.source.kind == "gguf" else None)
    attach(model, adapter)
    return model.eval()


def _split(name: str, endings: tuple[str, ...]) -> tuple[str, str]:
    """Split a tensor's name into module and ending; "" for a name that has none of these endings."""
    ending = next((e for e in endings if name.startswith(PREFIX) and name.endswith(e)), "")
    return name.removeprefix(PREFIX).removesuffix(ending), ending


def _targets(modules: tuple[str, ...], architecture: ModelLayout) -> list[str]:
    """Return the shortest `target_modules` that mean exactly these modules: last names where they are enough."""
    everything = {hf.removesuffix(".weight") for hf in architecture.hf_names().values() if hf.endswith(".weight")}
    last: dict[str, set[str]] = defaultdict(set)
    for module in everything:
        last[module.rpartition(".")[2]].add(module)
    chosen = set(modules)
    names = {module.rpartition(".")[2] for module in chosen}
    return sorted(names) if all(last[name] <= chosen for name in names) else sorted(chosen)
