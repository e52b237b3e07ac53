"""How much each input of each matrix matters: the mean of its square over a text, as llama.cpp's importance matrix.

A weight's rounding error is multiplied by its input, so an error costs where inputs are large. The numbers are those of
llama.cpp's `llama-imatrix`, taken from the model as it runs here; the output head is measured too, which that tool
leaves out. Names are those of a GGUF file.

Letters: N tokens, C inputs of a matrix, E experts.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
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
        """Add x (N, C), which these linears read."""
        self._add([self._names[id(linear)] for linear in linears], x)

    def see_head(self, hidden: Tensor) -> None:
        """Add hidden (N, C), which the output table reads: once for each batch."""
        self._add([self.head], hidden)
        self.num_tokens += len(hidden)

    def _add(self, names: Sequence[str], x: Tensor) -> None:
        square = x.detach().float().square().sum(0, dtype=torch.float64)
        for name in names:
            self._sums[name] = self._sums[name] + square if name in self._sums else square
            self._counts[name] = self._counts.get(name, 0) + len(x)

    def importance(self, part: Architecture, dataset: str = "") -> Importance:
        """Return the importance by a GGUF file's names.

        An expert that no token came to gets the mean of the others: there is nothing to tell its inputs apart.
        """
        means = {name: (total / self._counts[name]).float() for name, total in self._sums.items()}
        by_tensor = {}
        for name, parameters in part.gguf_members().items():
            known = [means[p] for p in parameters if p in means]
            if known:
                filler = torch.stack(known).mean(0)
                rows = [part.columns_to_gguf(p, means.get(p, filler).unsqueeze(0)) for p in parameters]
                by_tensor[name] = torch.cat(rows).flatten().numpy()
        return Importance(by_tensor, self.num_tokens, [dataset] if dataset else [])


def packed(windows: Sequence[np.ndarray], device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
    """Windows as one batch: ids (N,) and bounds (S + 1,), both int64."""
    bounds = np.cumsum([0, *map(len, windows)])
    ids = np.concatenate(windows).astype(np.int64)
    return torch.from_numpy(ids).to(device), torch.from_numpy(bounds).to(device)


@contextlib.contextmanager
def observed(model: nn.Module, see: See) -> Iterator[None]:
    """Call `see` with the linears that read one input, and what they read, (N, C), as long as this lasts."""
    stacks = [s for module in model.modules() for s in vars(module).values() if isinstance(s, Stack)]
    for stack in stacks:
        for way, watched in _WAYS.items():
            setattr(stack, way, partial(watched, stack, see))
    try:
        yield
    finally:
        for stack in stacks:
            for way in _WAYS:
                delattr(stack, way)


def _norm_linear(stack: Stack, see: See, x: Tensor, norm: RMSNorm | None, biased: bool = True) -> tuple[Tensor, Tensor]:
    unit = x if norm is None else norm(x)
    see(stack.linears, unit)
    if norm is None or not norm.is_folded:
        return x, Stack.linear(stack, unit, biased)
    if stack.linears[0].frozen is not None and norm.weight.requires_grad:
        # the way that `Stack` would go through the method that is replaced here
        return x, Stack.linear(stack, unit, biased)
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


BLOCK = 32
_CHUNK = 1 << 24  # logits that are held at once


def curvature(
    model: Decoder,
    batches: Sequence[Sequence[np.ndarray]],
    seed: int = 0,
    inputs: Inputs | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Map parameters to (O, B) float32, nats per token and squared change: the sum of the diagonal over each block.

    It is the diagonal of the Fisher information: how much the model's predictions change when a weight does. For a
    small change δ of the weights the divergence of the predictions from what they were is ½ δᵀFδ (nats), where F is the
    mean square of the gradient of the log-probability of a token that the model itself draws. Rounding errors are
    nearly independent of one another, so the diagonal of F says what they cost. It is kept as sums over blocks of 32
    inputs: inside a block, the mean squares of the inputs say how it is spread.

    One backward pass serves a whole batch: the drawn tokens are independent, so that products of the gradients of
    different tokens are zero on average. What the output table costs needs no draw: its diagonal is Σ p(1 - p) h².
    O outputs and I inputs of a matrix, B = I / 32 blocks of a row.

    model: with trainable weights. batches: of windows of ids. inputs: what sees the inputs of all matrices on the way.
    Only matrices whose rows are whole blocks are in the result. The same seed gives the same numbers. Memory: the
    model, the gradient of one matrix at a time, and 1/32 of the model.
    """
    table = "model.embed_tokens.weight"
    head = table if model.options.tied else "lm_head.weight"
    matrices = {n: p for n, p in model.trainable().items() if p.ndim == 2 and p.shape[1] % BLOCK == 0}
    sums = {name: torch.zeros(p.shape[0], p.shape[1] // BLOCK) for name, p in matrices.items()}
    random = torch.Generator().manual_seed(seed)
    num_tokens = 0
    layers = {name: p for name, p in matrices.items() if name not in (table, head)}
    with _squared(layers, sums), observed(model, inputs.see) if inputs is not None else nullcontext():
        for number, windows in enumerate(batches):
            ids, bounds = packed(windows)
            hidden = model(ids, bounds)
            if inputs is not None:
                inputs.see_head(hidden)
            grad, diagonal = _of_head(model, hidden.detach(), random, head in sums)
            if diagonal is not None:
                sums[head] += diagonal
            hidden.backward(grad)
            num_tokens += len(ids)
            rows = model.get_parameter(table).grad
            if table in sums and rows is not None:  # only rows of tokens that were met have a gradient
                met = ids.unique()
                sums[table][met] += _blocks(rows[met])
            for parameter in model.parameters():
                parameter.grad = None
            if progress is not None:
                progress(number + 1, len(batches))
    return {name: total.div_(num_tokens) for name, total in sums.items()}


@contextmanager
def _squared(parameters: dict[str, nn.Parameter], sums: dict[str, Tensor]) -> Iterator[None]:
    """Square gradients and add them to `sums` as they come, as long as this lasts; none is kept."""

    def take(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            if parameter.grad is not None:
                sums[name] += _blocks(parameter.grad)
                parameter.grad = None

        return hook

    handles = [p.register_post_accumulate_grad_hook(take(name)) for name, p in parameters.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _blocks(values: Tensor) -> Tensor:
    """(O, I) → sums of the squares of each block, (O, B)."""
    return values.float().view(values.shape[0], -1, BLOCK).square().sum(-1)


@torch.no_grad()
def _of_head(
    model: Decoder, hidden: Tensor, random: torch.Generator, with_diagonal: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the gradient at hidden (N, D) of the summed log-probabilities of drawn tokens, (N, D).

    Also the diagonal of the output table in blocks, (V, D / 32), summed over tokens.
    """
    table = model.head
    cap = model.options.logit_soft_cap
    grad = torch.empty_like(hidden)
    diagonal = torch.zeros(table.shape[0], table.shape[1] // BLOCK) if with_diagonal else None
    step = max(1, _CHUNK // table.shape[0])
    for first in range(0, len(hidden), step):
        rows = slice(first, first + step)
        logits = model.logits(hidden[rows])
        likely = torch.softmax(logits, dim=-1)
        drawn = _drawn(likely, random)
        slope = None if cap is None else 1 - (logits / cap).square()
        del logits
        if diagonal is not None:
            spread = likely * (1 - likely)
            if slope is not None:
                spread *= slope.square()
            diagonal += spread.t() @ _blocks(hidden[rows])
        likely[torch.arange(len(drawn)), drawn] -= 1
        if slope is not None:
            likely *= slope
        grad[rows] = likely.neg_().to(table.dtype) @ table
    return grad, diagonal


def _drawn(likely: Tensor, random: torch.Generator) -> Tensor:
    """One token for each row of chances (N, V), (N,)."""
    upto = likely.cumsum(-1)
    at = torch.rand(len(likely), 1, generator=random).clamp_(max=1 - 1e-6) * upto[:, -1:]
    return torch.searchsorted(upto, at, right=True).squeeze(1).clamp_(max=likely.shape[1] - 1)
