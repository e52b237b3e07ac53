"""Adapters: few numbers trained beside weights that are frozen. A part is a method; what it made is handled below.

Letters: r rank, I inputs and O outputs of a linear. Names of what an adapter made are PEFT's:
`base_model.model.<module>.lora_A.weight` (r, I), `.lora_B.weight` (O, r), `.lora_magnitude_vector` (O,).
"""

import difflib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from settle.base.errors import FormatError, UsageError
from settle.base.registry import Part
from settle.model.decoder import Decoder
from settle.model.layers.linear import Linear

PREFIX = "base_model.model."
_SUFFIXES = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "lora_magnitude_vector": "lora_magnitude_vector"}


class Adapter(Part):
    """A method of adapting a model."""

    @abstractmethod
    def apply(self, model: Decoder, seed: int = 0) -> list[str]:
        """Freeze `model` and put the adapter beside its linears; the names of those. Same seed, same numbers.

        What the model computes does not change. Raises UsageError when a target matches nothing.
        """


def matching(model: Decoder, targets: Sequence[str] | Literal["all-linear"]) -> dict[str, Linear]:
    """The linears that `targets` name, by their whole name or by its end, as in PEFT.

    "all-linear": all but the head and the routers of experts. Raises UsageError naming what comes near.
    """
    linears = model.linears()
    if targets == "all-linear":
        return {name: linear for name, linear in linears.items() if not name.endswith("mlp.gate")}
    for target in targets:
        if not any(_fits(name, target) for name in linears):
            ends = sorted({name.rpartition(".")[2] for name in linears})
            near = difflib.get_close_matches(target.rpartition(".")[2], ends)
            raise UsageError(
                f"no linear of this model is called {target!r}", f"did you mean {', '.join(near or ends)}?"
            )
    return {name: linear for name, linear in linears.items() if any(_fits(name, target) for target in targets)}


def _fits(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def state(model: Decoder) -> dict[str, Tensor]:
    """What the adapter made, by PEFT's names; the tensors are the live ones."""
    return {
        f"{PREFIX}{name}.{_SUFFIXES[leaf]}": parameter
        for name, linear in _adapted(model)
        for leaf, parameter in linear.adapter.named_parameters()
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
            found, wanted = tuple(tensors[name].shape), tuple(parameter.shape)
            raise FormatError(f"{name} has the shape {found}, not {wanted}", "apply it to the base it was made on")
        parameter.copy_(tensors[name])


class Merged(Mapping[str, Tensor]):
    """Every tensor of the base model, name and fp32 numbers, with what its adapter adds; made when asked for."""

    def __init__(self, model: Decoder) -> None:
        self._weights = model.weights()
        self._adapted = {f"{name}.weight": linear.adapter for name, linear in _adapted(model)}

    @torch.no_grad()
    def __getitem__(self, name: str) -> Tensor:
        weight = self._weights[name]
        numbers = weight.detach().float() if isinstance(weight, Tensor) else weight.dense(torch.float32)
        return self._adapted[name].merged(numbers) if name in self._adapted else numbers

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def remove(model: Decoder) -> None:
    """Take the adapter away; the base is frozen still, and computes what it did."""
    for _, linear in _adapted(model):
        linear.adapter = None
    model.lr_scales = {}


def _adapted(model: Decoder) -> Iterator[tuple[str, Linear]]:
    return ((name, linear) for name, linear in model.linears().items() if linear.adapter is not None)
