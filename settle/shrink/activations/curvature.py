"""How much the model's predictions change when a weight does: the diagonal of the Fisher information, in blocks.

For a small change δ of the weights the divergence of the predictions from what they were is ½ δᵀFδ (nats), where F is
the mean square of the gradient of the log-probability of a token that the model itself draws. Rounding errors are
nearly independent of one another, so the diagonal of F says what they cost. It is kept as sums over blocks of 32
inputs: inside a block, the mean squares of the inputs say how it is spread.

One backward pass serves a whole batch: the drawn tokens are independent, so that products of the gradients of different
tokens are zero on average. What the output table costs needs no draw: its diagonal is Σ p(1 - p) h².

Letters: N tokens, D width, V vocabulary, O outputs and I inputs of a matrix, B = I / 32 blocks of a row.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from settle.model.decoder import Decoder
from settle.shrink.activations.importance import Inputs, observed, packed

BLOCK = 32
_CHUNK = 1 << 24  # logits that are held at once


def curvature(
    model: Decoder,
    batches: Sequence[Sequence[np.ndarray]],
    seed: int = 0,
    inputs: Inputs | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Parameter name → (O, B) float32, nats per token and squared change: the sum of the diagonal over each block.

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
            _take_rows(model.get_parameter(table), ids, sums.get(table))
            for parameter in model.parameters():
                parameter.grad = None
            if progress is not None:
                progress(number + 1, len(batches))
    return {name: total.div_(num_tokens) for name, total in sums.items()}


@contextmanager
def _squared(parameters: dict[str, nn.Parameter], sums: dict[str, Tensor]) -> Iterator[None]:
    """As long as this lasts, gradients are squared and added to `sums` as they come, and are not kept."""

    def take(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            sums[name] += _blocks(parameter.grad)
            parameter.grad = None

        return hook

    handles = [p.register_post_accumulate_grad_hook(take(name)) for name, p in parameters.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _take_rows(table: nn.Parameter, ids: Tensor, total: Tensor | None) -> None:
    """The input table: only rows of tokens that were met have a gradient."""
    if total is not None and table.grad is not None:
        met = ids.unique()
        total[met] += _blocks(table.grad[met])


def _blocks(values: Tensor) -> Tensor:
    """(O, I) → sums of the squares of each block, (O, B)."""
    return values.float().view(values.shape[0], -1, BLOCK).square().sum(-1)


@torch.no_grad()
def _of_head(
    model: Decoder, hidden: Tensor, random: torch.Generator, with_diagonal: bool
) -> tuple[Tensor, Tensor | None]:
    """hidden (N, D) → the gradient there of the summed log-probabilities of drawn tokens, (N, D), and the diagonal of
    the output table in blocks, (V, D / 32), summed over tokens.
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
