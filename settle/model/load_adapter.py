"""Adapters that were trained: read from files, put beside the linears of their base, described for files."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
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
from settle.model.adapters._peft_experts import block_diagonal, wrappers
from settle.model.adapters._peft_experts import stacked as stack
from settle.model.adapters.lora import DOWN, UP, LoRA
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
        stacked = self._stacked(architecture)
        experts = {module for linears in stacked.values() for of_one in linears for module in of_one}
        joined = _joined(self.modules, architecture)
        whole = {member: name for name, members in joined.items() for member in members}
        others = tuple(whole.get(m, m) for m in self.modules if m not in experts)
        # PEFT takes any linear of the names of experts' linears for one of theirs, but not a parameter
        shared = [m for m in others if ".shared_expert." in m] if architecture.PEFT_NAMES_EXPERTS else []
        config = self.method.peft_config(_targets(tuple(m for m in others if m not in shared), architecture))
        wide = {name: len(linears[0]) for name, linears in stacked.items()}
        for name, number in (wide | {name: len(members) for name, members in joined.items()}).items():
            if number > 1:
                self.method.widen(config, name.partition(".layers.")[2].partition(".")[2], number)
        parameters: list[JsonValue] = [*stacked, *(f"{module}.weight" for module in shared)]
        return config | {"target_parameters": parameters} if parameters else config

    def _stacked(self, architecture: ModelLayout) -> dict[str, list[list[str]]]:
        """Return the adapted ones of `expert_parameters`, where PEFT wants them so.

        Raises FormatError when only some of the linears that one holds are adapted.
        """
        if architecture.PEFT_NAMES_EXPERTS or self.lora is None:
            return {}
        stacked, adapted = {}, set(self.modules)
        for name, linears in architecture.expert_parameters().items():
            modules = {module for of_one in linears for module in of_one}
            if modules <= adapted:
                stacked[name] = linears
            elif modules & adapted:
                raise FormatError(f"PEFT adapts all of {name} or nothing", "adapt all experts, or none")
        covered = {module for linears in stacked.values() for of_one in linears for module in of_one}
        if lone := next((m for m in self.modules if ".experts." in m and m not in covered), None):
            raise FormatError(f"PEFT knows no adapter of {lone}", "adapt attention only, or export it as GGUF")
        return stacked

    def peft_state(self, architecture: ModelLayout) -> dict[str, np.ndarray]:
        """Return its tensors as PEFT names them: adapters of linears that files join are one, of all their ranks."""
        state = dict(self.state)
        for name, members in _joined(self.modules, architecture).items():
            for ending in self.method.ENDINGS:
                pieces = [state.pop(f"{PREFIX}{member}{ending}") for member in members]
                state[f"{PREFIX}{name}{ending}"] = block_diagonal(pieces) if ending == UP else np.concatenate(pieces)
        stacked = self._stacked(architecture)
        for parameter, module in wrappers(stacked).items():
            pairs = [
                [[state.pop(f"{PREFIX}{linear}{ending}") for linear in linears] for linears in stacked[parameter]]
                for ending in (DOWN, UP)
            ]
            state |= {f"{PREFIX}{module}{ending}": x for ending, x in zip((DOWN, UP), stack(*pairs), strict=True)}
        return state

    def apart(self, architecture: Architecture) -> "TrainedAdapter":
        """Return it with a pair for each of the linears that files join, as the model has them."""
        names, shapes = architecture.hf_names(), architecture.parameters()
        state = dict(self.state)
        joined = {
            name: (members, [shapes[parameter][0] for parameter in names if names[parameter] == f"{name}.weight"])
            for name, members in _joined((), architecture).items()
        }
        sizes = architecture.linears()
        for name, linears in architecture.expert_parameters().items():
            container, _, own = name.rpartition(".")
            inner = [sizes[linear].outputs for linear in linears[0]]
            joined |= {f"{container}.{expert}.{own}": (of_one, inner) for expert, of_one in enumerate(linears)}
        for name, (members, rows) in joined.items():
            if f"{PREFIX}{name}{DOWN}" not in state:
                continue
            for ending in self.method.ENDINGS:
                whole = state.pop(f"{PREFIX}{name}{ending}")
                pieces = [whole] * len(rows) if ending == DOWN else np.split(whole, np.cumsum(rows)[:-1])
                state |= {f"{PREFIX}{m}{ending}": piece for m, piece in zip(members, pieces, strict=True)}
        if state.keys() == self.state.keys():
            return self
        targets = list(dict.fromkeys(_split(name, self.method.ENDINGS)[0] for name in state))
        return replace(self, method=self.method.model_copy(update={"targets": targets}), state=state)

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
        by_hf = {module: ours for ours, module in architecture.hf_modules().items()}
        by_module: dict[str, str] = {}
        for module in self.modules:
            if module not in by_hf:
                is_stacked = ".experts." in module and not architecture.PEFT_NAMES_EXPERTS
                raise FormatError(
                    f"the adapter is for {module}, which a {architecture.model_type} of this size does not have",
                    "merge it with peft" if is_stacked else "take the base it was trained on",
                )
            by_module[module] = by_hf[module]
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
    model = base.load(quantize="as-is")
    attach(model, adapter)
    return model.eval()


def _split(name: str, endings: tuple[str, ...]) -> tuple[str, str]:
    """Split a tensor's name into module and ending; "" for a name that has none of these endings."""
    ending = next((e for e in endings if name.startswith(PREFIX) and name.endswith(e)), "")
    return name.removeprefix(PREFIX).removesuffix(ending), ending


def _joined(modules: Collection[str], architecture: ModelLayout) -> dict[str, list[str]]:
    """Return linears of the files that join several of the model's: name → those. modules: that are adapted, or none.

    Raises FormatError when only some of the linears that one joins are adapted.
    """
    names, members = architecture.hf_names(), defaultdict(list)
    experts = _of_experts(architecture)
    for parameter, module in architecture.hf_modules().items():
        if module not in experts:
            members[names[parameter].removesuffix(".weight")].append(module)
    joined = {name: linears for name, linears in members.items() if len(linears) > 1}
    for name, linears in joined.items():
        if modules and 0 < len(set(linears) & set(modules)) < len(linears):
            raise FormatError(f"PEFT adapts all of {name} or nothing", f"adapt each of {', '.join(linears)}")
    return {name: linears for name, linears in joined.items() if not modules or linears[0] in modules}


def _of_experts(architecture: ModelLayout) -> set[str]:
    """Return the linears of all experts."""
    return {m for linears in architecture.expert_parameters().values() for of_one in linears for m in of_one}


def _targets(modules: tuple[str, ...], architecture: ModelLayout) -> list[str]:
    """Return the shortest `target_modules` that mean exactly these modules: last names where they are enough."""
    joined = {member: name for name, members in _joined((), architecture).items() for member in members}
    parameters = set() if architecture.PEFT_NAMES_EXPERTS else _of_experts(architecture)
    everything = {joined.get(m, m) for m in architecture.hf_modules().values() if m not in parameters}
    last: dict[str, set[str]] = defaultdict(set)
    for module in everything:
        last[module.rpartition(".")[2]].add(module)
    chosen = set(modules)
    names = {module.rpartition(".")[2] for module in chosen}
    return sorted(names) if all(last[name] <= chosen for name in names) else sorted(chosen)
