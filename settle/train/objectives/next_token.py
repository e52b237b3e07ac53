"""Predict the next token of the same document."""

from collections.abc import Iterator
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.autograd import Function

from settle.data.batches import Batch
from settle.model.decoder import Decoder
from settle.model.layers.freezable import FreezableModule, as_kind
from settle.model.layers.kernels import Context, apply
from settle.model.layers.transfer import on_host
from settle.train.objectives import Objective, Rows, supervised
from settle.train.objectives._definition import target_nats

QUICK_ROWS = 256  # rows of a product with the head; with fewer, reading the head takes most of the time


class NextToken(Objective):
    """Cross-entropy of the next token, the logits computed in chunks and never kept."""

    rows: ClassVar[Rows] = "text"
    is_default: ClassVar[bool] = True
    takes_one_pass: ClassVar[bool] = True

    chunk_logits: int = Field(1 << 20, gt=0, description="logits that are held in fp32 at once")

    def loss(self, model: FreezableModule, inputs: Tensor, targets: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, int]:
        model = as_kind(model, Decoder)
        hidden = model(inputs, cu_seqlens)
        count = int((on_host(targets) >= 0).sum())
        if count < len(targets):
            positions = supervised(targets)
            hidden, targets = hidden.index_select(0, positions), targets.index_select(0, positions)
        cast, head = model.head_operands()
        soft_cap = model.options.logit_soft_cap
        return apply(LinearCrossEntropy, hidden, cast, head, targets, self.chunk_logits, soft_cap), count

    def by_definition(self, model: FreezableModule, batch: Batch) -> tuple[float, int]:
        model = as_kind(model, Decoder)
        nats = target_nats(model, batch)
        return float(nats.sum()), len(nats)


def token_losses(model: Decoder, hidden: Tensor, targets: Tensor, chunk_logits: int = 1 << 20) -> Tensor:
    """Nats of each target (N,) after hidden (N, D), with gradient for hidden. Only for a head that is not trained."""
    cast, head = model.head_operands()
    assert not head.requires_grad, "the head's gradient depends on what becomes of each token's loss"
    return apply(TokenLosses, hidden, cast, targets, chunk_logits, model.options.logit_soft_cap)


class LinearCrossEntropy(Function):
    """Sum of -log softmax(hidden @ head.T)[target] with its gradient computed on the way.

    hidden (N, D), `cast` (V, D) the head in the compute type, `head` (V, D) its owner, targets (N,) → scalar fp32.
    soft_cap: logits become cap · tanh(logit / cap).
    """

    @staticmethod
    def forward(
        ctx: Context,
        hidden: Tensor,
        cast: Tensor,
        head: Tensor,
        targets: Tensor,
        chunk_logits: int,
        soft_cap: float | None = None,
    ) -> Tensor:
        chunks = _chunks(hidden, cast, targets, chunk_logits, soft_cap, any(ctx.needs_input_grad))
        return summed(ctx, hidden, cast, head, chunks)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_head = scaled(ctx, grads[0])
        return grad_hidden, None, grad_head, None, None, None


def summed(
    ctx: Context, hidden: Tensor, cast: Tensor, head: Tensor, chunks: Iterator[tuple[slice, Tensor, Tensor]]
) -> Tensor:
    """Sum the losses that hang on hidden @ head.T, and keep the gradient in `ctx` for `scaled`.

    hidden, cast, head: the first three inputs of the function. chunks: rows, losses of them (n,), and the losses'
    gradient at the logits (n, V), which the next one overwrites.
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    total = torch.zeros((), dtype=wide, device=hidden.device)
    with_grad = any(ctx.needs_input_grad)
    if with_grad:
        grad_hidden = torch.empty_like(hidden)
        grad_head = torch.zeros(head.shape if ctx.needs_input_grad[2] else 0, dtype=wide, device=hidden.device)
    for rows, losses, errors in chunks:
        total += losses.sum()
        if with_grad:
            torch.mm(errors, cast, out=grad_hidden[rows])
            if ctx.needs_input_grad[2]:
                grad_head += errors.t() @ hidden[rows]
    if with_grad:
        ctx.save_for_backward(grad_hidden, grad_head)
    return total


def scaled(ctx: Context, scale: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of hidden and of the head that `summed` kept, times the gradient of the sum."""
    grad_hidden, grad_head = ctx.saved_tensors
    return grad_hidden * scale.to(grad_hidden.dtype), grad_head * scale if ctx.needs_input_grad[2] else None


class TokenLosses(Function):
    """`LinearCrossEntropy` with a loss for each token (N,), in fp32, and without a gradient of the head."""

    @staticmethod
    def forward(
        ctx: Context, hidden: Tensor, cast: Tensor, targets: Tensor, chunk_logits: int, soft_cap: float | None
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        out = torch.empty(len(hidden), dtype=wide, device=hidden.device)
        with_grad = ctx.needs_input_grad[0]
        grad_hidden = torch.empty_like(hidden) if with_grad else None
        for rows, losses, errors in _chunks(hidden, cast, targets, chunk_logits, soft_cap, with_grad):
            out[rows] = losses
            if grad_hidden is not None:
                torch.mm(errors, cast, out=grad_hidden[rows])
        ctx.save_for_backward(grad_hidden)
        return out

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_hidden,) = ctx.saved_tensors
        return grad_hidden * grads[0].unsqueeze(1).to(grad_hidden.dtype), None, None, None, None


def _chunks(
    hidden: Tensor, cast: Tensor, targets: Tensor, chunk_logits: int, soft_cap: float | None, with_grad: bool
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield rows, their losses (n,) in fp32 and, `with_grad`, the losses' gradient at the logits (n, V).

    The gradient is in the compute type, and overwritten by the next. Only what is made in fp32 is held to
    `chunk_logits`.
    """
    for rows, logits, size in logit_chunks(hidden, cast, chunk_logits):
        pieces = zip(logits.split(size), targets[rows].unsqueeze(1).split(size), strict=True)
        yield rows, torch.cat([_into_errors(piece, wanted, soft_cap, with_grad) for piece, wanted in pieces]), logits


def logit_chunks(hidden: Tensor, cast: Tensor, chunk_logits: int) -> Iterator[tuple[slice, Tensor, int]]:
    """Yield rows, their logits (n, V), which the next overwrite, and how many of those rows fp32 is made of at once.

    A product has at least as many rows as make it quick, also when V is large.
    """
    size = max(1, chunk_logits // cast.shape[0])
    step = max(1, min(len(hidden), max(size, QUICK_ROWS)))
    buffer = hidden.new_empty(step, cast.shape[0])
    for start in range(0, len(hidden), step):
        rows = slice(start, min(len(hidden), start + step))
        logits = buffer[: rows.stop - start]
        torch.mm(hidden[rows], cast.t(), out=logits)
        yield rows, logits, size


def _into_errors(logits: Tensor, target: Tensor, soft_cap: float | None, with_grad: bool) -> Tensor:
    """Losses (n,) of logits (n, V), which become their gradients in place."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    capped = logits
    if soft_cap is not None:
        capped = logits.div_(soft_cap).tanh_() * soft_cap
    likely = torch.softmax(capped, dim=-1, dtype=wide)
    losses = likely.gather(1, target).clamp_min_(torch.finfo(wide).tiny).log_().neg_().squeeze(1)
    if with_grad:
        errors = likely.scatter_add_(1, target, likely.new_full(target.shape, -1.0))
        if soft_cap is not None:
            errors = torch.ops.aten.tanh_backward(errors, logits.to(wide))
        logits.copy_(errors)
    return losses
