"""Shapes and batches from one number. Only the smallest was measured (bench/recipe.py); the rest is extrapolated."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Dimensions of a decoder: hidden `width`, feed-forward `inner`, `layers`, `heads` of `head_dim`."""

    width: int
    inner: int
    layers: int
    heads: int
    head_dim: int
    tied: bool

    def parameters(self, vocab_size: int) -> int:
        """All trainable numbers with a table of `vocab_size` rows."""
        matrices = self.layers * self.width * (4 * self.heads * self.head_dim + 3 * self.inner)
        norms = (2 * self.layers + 1) * self.width
        return matrices + norms + (1 if self.tied else 2) * vocab_size * self.width


def of_width(width: int) -> Shape:
    """The shape a width gets: layers grow with it slowly, F ≈ 8/3 D in whole cache lines."""
    layers = max(2, round(width / 64))
    head_dim = 64 if width % 64 == 0 else 32
    return Shape(width, round(width * 8 / 3 / 64) * 64, layers, width // head_dim, head_dim, tied=False)


def shape(num_parameters: int, vocab_size: int) -> Shape:
    """The shape whose number of parameters comes nearest to `num_parameters` (by ratio)."""
    widths = [*range(32, 256, 32), *range(256, 8193, 64)]
    return min(map(of_width, widths), key=lambda s: abs(math.log(s.parameters(vocab_size) / num_parameters)))


def context(num_parameters: int) -> int:
    """Tokens of context for a model of this size."""
    return 128 if num_parameters < 4e6 else 256 if num_parameters < 30e6 else 512


def tokens_per_batch(num_parameters: int) -> int:
    """Tokens in one optimizer step, a power of two.

    Small models learn most from many small steps (bench/recipe.py, "batch / 2, same tokens"). Muon's iteration costs
    about 5 · D / N of a step's FLOPs, so larger models take larger batches to keep that under a third.
    """
    return 1 << round(math.log2(max(1024.0, 1400 * (num_parameters / 1e6) ** 0.75)))
