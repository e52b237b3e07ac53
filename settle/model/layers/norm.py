"""Root-mean-square norms (arXiv:1910.07467). Letters: N tokens, D width."""

import torch
from torch import Tensor, nn

from settle.model.layers.kernels import NormAdd, RmsNorm, apply


class RMSNorm(nn.Module):
    """A norm that multiplies by `offset` + its weight (D,); it begins as multiplying by one."""

    def __init__(self, width: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), 1.0 - offset))
        self.eps, self.offset = eps, offset

    def factor(self) -> Tensor:
        """What the unit is multiplied by, (D,)."""
        return self.weight + self.offset if self.offset else self.weight

    def forward(self, x: Tensor) -> Tensor:
        """x (N, D) → (N, D)."""
        return apply(RmsNorm, x, self.factor(), self.eps)

    def add(self, residual: Tensor, y: Tensor) -> Tensor:
        """residual (N, D) + norm(y (N, D))."""
        return apply(NormAdd, residual, y, self.factor(), self.eps)
