"""Adapters: few numbers trained beside the frozen linears of a model. A part is a method, and all that is known of it.

Files name what an adapter trained as PEFT does: `base_model.model.<module>.lora_A.weight`. I inputs, O outputs of a
linear.
"""

import difflib
import re
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Literal, Self, get_args

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from settle.base.errors import FormatError, UsageError
from settle.base.registry import Part
from settle.formats import LoraPairs
from settle.model.config import LinearShape
from settle.model.decoder import Decoder
from settle.model.layers.linear import Linear
from settle.model.layers.linear_adapter import LinearAdapter

PREFIX = "base_model.model."
TargetName = Literal["all-linear", "last-third"]
TARGET_NAMES = get_args(TargetName)
Linears = Mapping[str, Linear | LinearShape]  # by their names in files
LEAST_LAYERS = 4  # of the last third
_LAYER = re.compile(r"\blayers\.(\d+)\.")


class Adapter(Part):
    """A method of adapting a model over its linears. Settings are fields.

    ENDINGS: of the names of a linear's tensors in a file, behind the module's. LEARNING_RATE: of AdamW over a base of
    usual width, when nobody gives one.
    """

    ENDINGS: ClassVar[tuple[str, ...]]
    LEARNING_RATE: ClassVar[float] = 3e-4

    def rate(self, width: int) -> float:
        """Return the default learning rate of AdamW over a base of this hidden width."""
        return self.LEARNING_RATE

    @abstractmethod
    def targeted(self, linears: Linears) -> list[str]:
        """Return the names of the linears that are adapted. Raises UsageError when a target matches nothing."""

    @abstractmethod
    def beside(self, name: str, inputs: int, outputs: int) -> LinearAdapter:
        """Make what is trained next to one linear, not yet initialised."""

    @abstractmethod
    def kept_per_token(self, name: str, inputs: int, outputs: int) -> int:
        """Numbers that the backward pass keeps of each token because such a linear is adapted."""

    @abstractmethod
    def peft_config(self, targets: list[str]) -> dict[str, JsonValue]:
        """Return this method's keys of PEFT's adapter_config.json. targets: the shortest `target_modules`."""

    def widen(self, config: dict[str, JsonValue], module: str, times: int) -> None:
        """Say in PEFT's settings that the adapter of these modules is that of `times` linears, which files join.

        Raises FormatError where the method has none for several.
        """
        raise FormatError(f"PEFT has no {type(self).__name__} for parts of {module}", "merge it: `settle export NAME`")

    @classmethod
    @abstractmethod
    def from_peft(
        cls, config: Mapping[str, JsonValue], tensors: Mapping[str, np.ndarray]
    ) -> tuple[Self, Mapping[str, np.ndarray]] | None:
        """Return the settings that a folder of PEFT's describes, and its tensors by the names of `state`.

        None for a folder of another method. Raises FormatError for a setting that is not supported, and for tensors
        that do not fit it.
        """

    def lora_pairs(self, tensors: Mapping[str, np.ndarray]) -> LoraPairs | None:
        """Return what llama.cpp has to add to the base's weights as it serves them.

        None when it cannot: then a GGUF file is written of merged weights.
        """
        return None

    def apply(self, model: Decoder, seed: int = 0) -> list[str]:
        """Freeze `model` and put the adapter beside its linears; their names in files. Same seed, same numbers.

        What the model computes does not change. Raises UsageError when a target matches nothing.
        """
        linears = {model.file_name(name): linear for name, linear in model.linears().items()}
        chosen = self.targeted(linears)
        model.freeze()
        random = torch.Generator().manual_seed(seed)
        for name in chosen:
            linear = linears[name]
            adapter = self.beside(name, linear.inputs, linear.outputs)
            assert linear.frozen is not None
            adapter.initialise(linear.frozen, random)
            linear.adapter = adapter.to(model.device).train(model.training)
        return chosen

    def kept_numbers(self, linears: Linears) -> dict[str, int]:
        """Linear → `kept_per_token`, of a model with these linears."""
        chosen = [(name, linears[name]) for name in self.targeted(linears)]
        return {name: self.kept_per_token(name, linear.inputs, linear.outputs) for name, linear in chosen}

    def num_parameters(self, linears: Linears) -> int:
        """Numbers that are trained in a model with these linears."""
        with torch.device("meta"):
            chosen = [(name, linears[name]) for name in self.targeted(linears)]
            extras = [self.beside(name, linear.inputs, linear.outputs) for name, linear in chosen]
        return sum(parameter.numel() for adapter in extras for parameter in adapter.parameters())


def matching(linears: Iterable[str], targets: Sequence[str] | TargetName, routers: Collection[str] = ()) -> list[str]:
    """Return the linears that `targets` name, by their whole name or by its end, as in PEFT.

    "all-linear": all but the head, the routers of experts, and a Mamba's `out_proj`, which PEFT refuses. "last-third":
    those of them in the last third of the layers. routers: which of the linears are some. Raises UsageError naming
    what comes near.
    """
    names = list(linears)
    if targets in TARGET_NAMES:
        names = [name for name in names if name not in routers and not name.endswith("mamba.out_proj")]
        return _last_third(names) if targets == "last-third" else names
    for target in targets:
        if not any(_fits(name, target) for name in names):
            ends = sorted({name.rpartition(".")[2] for name in names})
            near = difflib.get_close_matches(target.rpartition(".")[2], ends)
            raise UsageError(
                f"no linear of this model is called {target!r}", f"did you mean {', '.join(near or ends)}?"
            )
    return [name for name in names if any(_fits(name, target) for target in targets)]


def _last_third(names: Sequence[str]) -> list[str]:
    layers = [int(found[1]) if (found := _LAYER.search(name)) else -1 for name in names]
    number = max(layers, default=-1) + 1
    first = max(0, number - max(LEAST_LAYERS, round(number / 3)))
    return [name for name, layer in zip(names, layers, strict=True) if layer >= first]


def _fits(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def state(model: Decoder) -> dict[str, Tensor]:
    """Return what the adapter trains, by PEFT's names; the tensors are the live ones."""
    return {
        f"{PREFIX}{model.file_name(name)}.{adapter.FILE_NAMES.get(leaf, leaf)}": parameter
        for name, _, adapter in _adapted(model)
        for leaf, parameter in adapter.named_parameters()
    }


@torch.no_grad()
def load(model: Decoder, tensors: Mapping[str, Tensor]) -> None:
    """Take over what `state` gave, into a model that the same method was applied to. Raises FormatError on a misfit."""
    own = state(model)
    stray = sorted(own.keys() ^ tensors.keys())
    if stray:
        raise FormatError(f"the adapter and the model disagree about {stray[0]}", "apply it to the base it was made on")
    for name, parameter in own.items():
        if parameter.shape != tensors[name].shape:
            shape, expected = tuple(tensors[name].shape), tuple(parameter.shape)
            raise FormatError(f"{name} has the shape {shape}, not {expected}", "apply it to the base it was made on")
        parameter.copy_(tensors[name])


class Merged(Mapping[str, Tensor]):
    """Every tensor of the base model, name and fp32 numbers, with what its adapter changes; made when asked for."""

    def __init__(self, model: Decoder) -> None:
        self._weights = model.weights()
        self._changed: dict[str, Callable[[Tensor], Tensor]] = {}
        for name, _, adapter in _adapted(model):
            self._changed |= {f"{name}.weight": adapter.merged, f"{name}.bias": adapter.merged_bias}

    @torch.no_grad()
    def __getitem__(self, name: str) -> Tensor:
        weight = self._weights[name]
        numbers = weight.detach().float() if isinstance(weight, Tensor) else weight.dense(torch.float32)
        return self._changed[name](numbers) if name in self._changed else numbers

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def remove(model: Decoder) -> None:
    """Take the adapter away; the base is frozen still, and computes what it did."""
    for _, linear, _ in _adapted(model):
        linear.adapter = None
    model.lr_scales = {}


def _adapted(model: Decoder) -> Iterator[tuple[str, Linear, LinearAdapter]]:
    for name, linear in model.linears().items():
        if linear.adapter is not None:
            yield name, linear, linear.adapter
