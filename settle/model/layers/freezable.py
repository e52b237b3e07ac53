"""A module whose tensors are trained or frozen, with adapters beside its linears or without."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from settle.base.errors import FormatError
from settle.model.layers.frozen_weights import Frozen, FrozenDense, Owner
from settle.model.layers.linear import Constant, Linear
from settle.model.layers.linear_adapter import LinearAdapter, adapters_of

Kind = TypeVar("Kind", bound=nn.Module)


class FreezableModule(nn.Module):
    """A base class of what the loop trains.

    `width`: of its hidden states. `compute_dtype`: the type of its matrix products, in which frozen matrices are kept.
    `lr_scales`: last part of a parameter's name → factor of its learning rate. `is_sharded`: whether this process owns
    only some rows of each parameter; `computes_on`: the device to which they then go to be computed with.
    """

    width: int
    compute_dtype: torch.dtype = torch.float32
    is_sharded: bool = False
    computes_on: torch.device | None = None

    def __init__(self) -> None:
        super().__init__()
        self.lr_scales: dict[str, float] = {}

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        raise NotImplementedError

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return what an optimizer steps and a checkpoint holds, by name, in the model's order."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def constants(self) -> dict[str, nn.Parameter]:
        """Return numbers of the base that are never trained, and that its files hold."""
        return {f"{name}.weight": m.weight for name, m in self.named_modules() if isinstance(m, Constant)}

    @torch.no_grad()
    def load_trainable(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the numbers of `trainable()`. Raises KeyError when a name is missing or not one of them.

        Constants may be among them.
        """
        own = self.trainable()
        own |= {name: p for name, p in self.constants().items() if name in weights}
        if own.keys() != weights.keys():
            raise KeyError(min(own.keys() ^ weights.keys()))
        for name, parameter in own.items():
            parameter.copy_(weights[name])

    def weights(self) -> dict[str, nn.Parameter | Frozen]:
        """Every tensor of the base model by name, trained or frozen; adapters are not among them."""
        by_path: dict[str, nn.Parameter | Frozen] = {}
        for path, module in self.named_modules():
            if isinstance(module, LinearAdapter):
                continue
            if isinstance(module, Owner) and module.frozen is not None:
                by_path[f"{path}.weight"] = module.frozen
            by_path |= {f"{path}.{leaf}": p for leaf, p in module.named_parameters(recurse=False)}
        return by_path

    def put(self, name: str, value: Tensor | Frozen) -> None:
        """Set one tensor of the base model, in Hugging Face's layout: a plain tensor is trained, in fp32.

        Norms and biases that are frozen are kept in fp32 too; a constant is never trained. Raises FormatError when the
        shape is another.
        """
        path, _, leaf = name.rpartition(".")
        module = self.get_submodule(path)
        if isinstance(module, Owner) and leaf == "weight":
            module.put(value)
            return
        tensor = value.dense(torch.float32) if isinstance(value, Frozen) else value
        own = getattr(module, leaf)
        if tensor.numel() != own.numel():
            raise FormatError(f"{name} has the shape {tuple(tensor.shape)} where {tuple(own.shape)} belongs", "")
        trains = tensor is value and not isinstance(module, Constant)
        parameter = nn.Parameter(tensor.detach().float().view(own.shape), requires_grad=trains)
        setattr(module, leaf, parameter)

    def freeze(self) -> None:
        """Make every tensor of the base model a frozen one, dense in the compute type unless it already is frozen."""
        for name, weight in self.weights().items():
            if isinstance(weight, nn.Parameter):
                if weight.ndim == 2:
                    self.put(name, FrozenDense(weight.detach().to(self.compute_dtype)))
                else:
                    weight.requires_grad_(False)

    def linears(self) -> dict[str, Linear]:
        """Every linear of the layers by name; the head is none of them."""
        return {name: m for name, m in self.named_modules() if isinstance(m, Linear)}

    def lr_scale(self, name: str) -> float:
        """Return what the learning rate of a trainable parameter is multiplied by."""
        return self.lr_scales.get(name.rpartition(".")[2], 1.0)

    @contextlib.contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Compute the base model alone, as long as this lasts."""
        adapters = adapters_of(self)
        for adapter in adapters:
            adapter.active = False
        try:
            yield
        finally:
            for adapter in adapters:
                adapter.active = True


def as_kind(model: nn.Module, kind: type[Kind]) -> Kind:
    """Return the model that the loop trains as what it is: an objective is of decoders, or of an encoder."""
    if not isinstance(model, kind):
        raise TypeError(f"{type(model).__name__} is no {kind.__name__}")
    return model
