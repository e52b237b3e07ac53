"""Several residual streams, of which a layer computes one (AltUp, arXiv:2301.13310), and a low-rank branch beside it.

Letters: N tokens, D hidden width, S streams.
"""

import torch
from torch import Tensor, nn

from settle.model.config import LayerOptions, Streams
from settle.model.layers.linear import Linear, RMSNorm, Stack


class AltUp(nn.Module):
    """Predicts every stream from all of them, and corrects each by what the layer made of the first.

    Hugging Face's class limits its coefficients to 120 while it trains, a thousand times what they are: not done here.
    """

    def __init__(self, o: LayerOptions, streams: Streams) -> None:
        super().__init__()
        number = streams.number
        self.correct_output_scale = nn.Parameter(torch.ones(o.width))
        self.correction_coefs = Linear(number, number, only_named=True)
        self.prediction_coefs = Linear(number, number * number, only_named=True)
        self.modality_router = Linear(o.width, number, only_named=True)
        self.router_norm = RMSNorm(o.width, o.eps, scale=1 / o.width)
        self.correction, self.prediction = Stack([(self.correction_coefs, 0)]), Stack([(self.prediction_coefs, 0)])
        self.router = Stack([(self.modality_router, 0)])

    def predict(self, x: Tensor) -> Tensor:
        """Compute the streams x (N, S, D) → what each of them is before the layer (N, S, D)."""
        tokens, number, _ = x.shape
        mixing = self.prediction.linear(self._routed(x[:, 0])).view(tokens, number, number)
        return x + torch.bmm(mixing, x)

    def correct(self, predicted: Tensor, out: Tensor) -> Tensor:
        """Compute predicted (N, S, D) and out (N, D), what the layer made of the first → the streams (N, S, D)."""
        shares = self.correction.linear(self._routed(out)) + 1
        return torch.addcmul(predicted, (out - predicted[:, 0]).unsqueeze(1), shares.unsqueeze(2))

    def _routed(self, x: Tensor) -> Tensor:
        """Compute x (N, D) → how much of each stream there is (N, S)."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return self.router.linear(self.router_norm(x)).to(wide).tanh().to(x.dtype)


class Laurel(nn.Module):
    """A residual of low rank (LAuReL, arXiv:2411.07501)."""

    def __init__(self, o: LayerOptions, streams: Streams) -> None:
        super().__init__()
        self.linear_left, self.linear_right = Linear(o.width, streams.laurel), Linear(streams.laurel, o.width)
        self.post_laurel_norm = RMSNorm(o.width, o.eps)
        self.left, self.right = Stack([(self.linear_left, 0)]), Stack([(self.linear_right, 0)])

    def forward(self, x: Tensor) -> Tensor:
        """Compute x (N, D), behind the norm → (N, D)."""
        return self.post_laurel_norm.add(x, self.right.linear(self.left.linear(x)))


def as_loud(x: Tensor, as_what: Tensor) -> Tensor:
    """Scale rows x (N, D) to the root mean square of the rows as_what (N, D)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    wanted = as_what.to(wide).square().mean(-1, keepdim=True).sqrt()
    return (x.to(wide) * (wanted / x.to(wide).square().mean(-1, keepdim=True).clamp(min=1e-5).sqrt())).to(x.dtype)
