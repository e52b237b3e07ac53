"""What an adapter adds to a frozen linear: scale · B A, and perhaps a magnitude a row. Methods are in `adapters`.

Letters: N tokens, I inputs, O outputs of a linear, r rank.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function


class LowRank(nn.Module):
    """The trainable pair of one linear: `lora_A` (r, I), `lora_B` (O, r), fp32.

    scale: what B A is multiplied by. dropout: share of the inputs of A that is zeroed in training. magnitude: whether
    rows of W + scale · B A are scaled to the length `lora_magnitude_vector` (O,) (DoRA, arXiv:2402.09353). active: set
    to False, the linear does what it did before.
    """

    active = True

    def __init__(
        self, inputs: int, outputs: int, rank: int, scale: float, dropout: float = 0.0, magnitude: bool = False
    ) -> None:
        super().__init__()
        self.scale, self.dropout = scale, dropout
        self.lora_A = nn.Parameter(torch.empty(rank, inputs))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank))
        self.lora_magnitude_vector = nn.Parameter(torch.ones(outputs)) if magnitude else None

    def keep(self, x: Tensor) -> Tensor | None:
        """What dropout multiplies the inputs x (N, I) by; None when it does nothing."""
        if not self.dropout or not self.training:
            return None
        return torch.empty_like(x).bernoulli_(1 - self.dropout).div_(1 - self.dropout)

    def merged(self, weight: Tensor) -> Tensor:
        """W (O, I) in fp32 with what the adapter makes of it."""
        changed = weight.addmm(self.lora_B.detach().float(), self.lora_A.detach().float(), alpha=self.scale)
        if self.lora_magnitude_vector is None:
            return changed
        lengths = torch.linalg.vector_norm(changed, dim=1)
        return changed.mul_((self.lora_magnitude_vector.detach().float() / lengths).unsqueeze(1))


class RowLengths(Function):
    """Lengths of rows of W + up · down, (O,) fp32, as the square root of a sum that never holds all of it.

    down (r, I), up (O, r), x: of the type that W is multiplied in; matrix and rows: where W (O, I) is found. The
    gradient is exact, where the paper (section 4.3) takes the lengths for constants.
    """

    @staticmethod
    def forward(ctx: Any, down: Tensor, up: Tensor, x: Tensor, matrix: Any, rows: slice) -> Tensor:
        weight = matrix.weight(x)[rows]
        base = torch.linalg.vector_norm(weight, dim=1, dtype=down.dtype).square_()
        cross = (weight @ down.to(weight.dtype).t()).to(down.dtype)
        inner = up @ (down @ down.t())
        lengths = (base + ((2 * cross + inner) * up).sum(1)).clamp_min_(torch.finfo(down.dtype).tiny).sqrt_()
        ctx.like, ctx.matrix, ctx.rows = x.new_empty(0), matrix, rows
        ctx.save_for_backward(down, up, cross.add_(inner), lengths)
        return lengths

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        down, up, product, lengths = ctx.saved_tensors  # product (O, r) is (W + up · down) · downᵀ
        share = (grads[0] / lengths).unsqueeze(1)
        weighted = up * share
        weight = ctx.matrix.weight(ctx.like)[ctx.rows]
        grad_down = (weighted.to(weight.dtype).t() @ weight).to(down.dtype) + (weighted.t() @ up) @ down
        return grad_down, product * share, None, None, None
