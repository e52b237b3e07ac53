"""Predict the next token of the same document."""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.autograd import Function

from settle.model.architectures import Decoder
from settle.train.objectives import Objective


class NextToken(Objective):
    """Cross-entropy of the next token, the logits computed in chunks and never kept."""

    rows: ClassVar[str] = "text"

    chunk_logits: int = Field(1 << 20, gt=0, description="logits held at once")

    def loss(self, model: Decoder, inputs: Tensor, targets: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, int]:
        hidden = model(inputs, cu_seqlens)
        counted = targets >= 0
        count = int(counted.sum())
        if count < len(targets):
            kept = counted.nonzero().squeeze(1)
            hidden, targets = hidden.index_select(0, kept), targets.index_select(0, kept)
        total: Tensor = LinearCrossEntropy.apply(
            hidden, model.head_cast(), model.head, targets, self.chunk_logits, model.options.logit_soft_cap
        )
        return total, count


class LinearCrossEntropy(Function):
    """Sum of -log softmax(hidden @ head.T)[target] with its gradient computed on the way.

    hidden (N, D), `cast` (V, D) the head in the compute type, `head` (V, D) its owner, targets (N,) → scalar fp32.
    soft_cap: logits become cap · tanh(logit / cap).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        cast: Tensor,
        head: Tensor,
        targets: Tensor,
        chunk_logits: int,
        soft_cap: float | None = None,
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        ctx.with_grad = any(ctx.needs_input_grad)
        if ctx.with_grad:
            grad_hidden = torch.empty_like(hidden)
            grad_head = torch.zeros(head.shape if ctx.needs_input_grad[2] else 0, dtype=wide, device=hidden.device)
        rows = max(1, chunk_logits // cast.shape[0])
        for start in range(0, hidden.shape[0], rows):
            part, target = hidden[start : start + rows], targets[start : start + rows].unsqueeze(1)
            logits = part @ cast.t()
            if soft_cap is not None:
                capped = logits.div_(soft_cap).tanh_()
                logits = capped * soft_cap
            likely = torch.softmax(logits, dim=-1, dtype=wide)
            total -= likely.gather(1, target).clamp_min_(torch.finfo(wide).tiny).log_().sum()
            if ctx.with_grad:
                errors = likely.scatter_add_(1, target, likely.new_full(target.shape, -1.0)).to(cast.dtype)
                if soft_cap is not None:
                    errors = torch.ops.aten.tanh_backward(errors, capped)
                torch.mm(errors, cast, out=grad_hidden[start : start + rows])
                if ctx.needs_input_grad[2]:
                    grad_head += errors.t() @ part
        if ctx.with_grad:
            ctx.save_for_backward(grad_hidden, grad_head)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_head = ctx.saved_tensors
        scale = grads[0]
        grad_head = grad_head * scale if ctx.needs_input_grad[2] else None
        return grad_hidden * scale.to(grad_hidden.dtype), None, grad_head, None, None, None
