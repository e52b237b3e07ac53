"""How much each input of each matrix matters: the mean of its square over a text, as llama.cpp's importance matrix.

A weight's rounding error is multiplied by its input, so an error costs where inputs are large. The numbers are those of
llama.cpp's `llama-imatrix`, taken from the model as it runs here; the output head is measured too, which that tool
leaves out. Names are those of a GGUF file.

Letters: N tokens, C inputs of a matrix, E experts.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from settle.model.architectures import Architecture
from settle.model.decoder import Decoder
from settle.model.layers.kernels import Gated, apply
from settle.model.layers.linear import Linear, RMSNorm, Stack
from settle.shrink.types.imatrix import Importance

See = Callable[[Sequence[Linear], Tensor], None]


class Inputs:
    """Sums over a text of the squares of what every matrix of a model reads."""

    def __init__(self, model: Decoder) -> None:
        self.head = "model.embed_tokens.weight" if model.options.tied else "lm_head.weight"
        self._names = {id(module): f"{path}.weight" for path, module in model.linears().items()}
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self.num_tokens = 0

    def see(self, linears: Sequence[Linear], x: Tensor) -> None:
        """x (N, C) is what these linears read."""
        self._add([self._names[id(linear)] for linear in linears], x)

    def see_head(self, hidden: Tensor) -> None:
        """hidden (N, C) is what the output table reads: once for each batch."""
        self._add([self.head], hidden)
        self.num_tokens += len(hidden)

    def _add(self, names: Sequence[str], x: Tensor) -> None:
        square = x.detach().float().square().sum(0, dtype=torch.float64)
        for name in names:
            self._sums[name] = self._sums[name] + square if name in self._sums else square
            self._counts[name] = self._counts.get(name, 0) + len(x)

    def importance(self, part: Architecture, dataset: str = "") -> Importance:
        """By a GGUF file's names. An expert that no token came to gets the mean of the others: there is nothing to
        tell its inputs apart.
        """
        means = {name: (total / self._counts[name]).float() for name, total in self._sums.items()}
        members: dict[str, list[str]] = {}
        for parameter, name in part.gguf_names().items():
            members.setdefault(name, []).append(parameter)
        by_tensor = {}
        for name, parameters in members.items():
            known = [means[p] for p in parameters if p in means]
            if known:
                filler = torch.stack(known).mean(0)
                by_tensor[name] = torch.cat([means.get(p, filler) for p in parameters]).numpy()
        return Importance(by_tensor, self.num_tokens, [dataset] if dataset else [])


def packed(windows: Sequence[np.ndarray], device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
    """Windows as one batch: ids (N,) and bounds (S + 1,), both int64."""
    bounds = np.cumsum([0, *map(len, windows)])
    ids = np.concatenate(windows).astype(np.int64)
    return torch.from_numpy(ids).to(device), torch.from_numpy(bounds).to(device)


@contextlib.contextmanager
def observed(model: nn.Module, see: See) -> Iterator[None]:
    """As long as this lasts, `see` is called with the linears that read one input, and what they read, (N, C)."""
    stacks = [s for module in model.modules() for s in vars(module).values() if isinstance(s, Stack)]
    for stack in stacks:
        for way in ("norm_linear", "linear", "linear_add", "gated"):
            setattr(stack, way, partial(_WAYS[way], stack, see))
    try:
        yield
    finally:
        for stack in stacks:
            for way in ("norm_linear", "linear", "linear_add", "gated"):
                delattr(stack, way)


def _norm_linear(stack: Stack, see: See, x: Tensor, norm: RMSNorm, biased: bool = True) -> tuple[Tensor, Tensor]:
    unit = norm(x)
    see(stack.linears, unit)
    if stack.linears[0].frozen is not None and norm.weight.requires_grad:
        return x, Stack.linear(
            stack, unit, biased
        )  # the way that `Stack` would go through the method that is replaced here
    return Stack.norm_linear(stack, x, norm, biased)


def _linear(stack: Stack, see: See, x: Tensor, biased: bool = True) -> Tensor:
    see(stack.linears, x)
    return Stack.linear(stack, x, biased)


def _linear_add(stack: Stack, see: See, residual: Tensor, x: Tensor) -> Tensor:
    see(stack.linears, x)
    return Stack.linear_add(stack, residual, x)


def _gated(stack: Stack, see: See, residual: Tensor | None, gate_up: Tensor, activation: str) -> Tensor:
    inner = apply(Gated, gate_up, activation)
    see(stack.linears, inner)
    return Stack.linear(stack, inner) if residual is None else Stack.linear_add(stack, residual, inner)


_WAYS: dict[str, Callable[..., object]] = {
    "norm_linear": _norm_linear,
    "linear": _linear,
    "linear_add": _linear_add,
    "gated": _gated,
}
