"""How large the scores of each layer's attention are, and where that is too large for a half type.

A score that is rounded to bfloat16 is off by up to 1/512 of itself, and the probability that comes of it is off by a
factor of e to that: 6 % at a score of 32, 7 times at 1,000. What counts is the size of the scores that are attended to.
"""

import torch
from torch import Tensor

from settle.model.decoder import Decoder
from settle.model.layers.attention import attend_bucket, attention_over
from settle.model.layers.packed_sequences import Packing, RotationTable, Scoring

# Above this size a layer's scores are computed in float32. At 16 and below bfloat16 adds next to nothing to the error
# of the gradient, at 30 it doubles it (bench/proof.py). The scores of SmolLM2 are 4 to 12, those of Qwen2.5 1,450.
LARGEST_HALF_SCORE = 20.0


class _ScoreSizes(Packing):
    """A packed batch that keeps the size of each layer's scores as it goes through a decoder."""

    attends_itself = True

    def __init__(self, cu_seqlens: Tensor) -> None:
        super().__init__(cu_seqlens)
        self.sizes: list[float] = []

    def attend(self, qkv: Tensor, table: RotationTable, scoring: Scoring, bias: Tensor | None) -> Tensor:
        rows = qkv.to(table.dtype) if bias is None else qkv + bias
        largest = 0.0
        for bucket in self.buckets:
            padded = rows if bucket.gather is None else rows[bucket.gather]
            _, (q, k, _, probabilities, *_) = attend_bucket(padded, None, bucket, table, scoring)
            scores = torch.bmm(q, k.transpose(1, 2)).abs()
            # a query head's rows lie together: (B·K, H/K, T) → the mean of its queries
            of_heads = (probabilities * scores).sum(-1).unflatten(1, (-1, bucket.length)).mean(-1)
            of_heads = of_heads.unflatten(0, (bucket.segments, -1)).mean(0)
            largest = max(largest, float(of_heads.max()))
        self.sizes.append(largest)
        return attention_over(qkv, self, table, scoring, bias)


@torch.no_grad()
def score_sizes(model: Decoder, inputs: Tensor, cu_seqlens: Tensor) -> list[float]:
    """For each layer the mean size of the scores that a query attends to, in the head where it is largest.

    inputs (N,) token ids, cu_seqlens (S+1,).
    """
    packing = _ScoreSizes(cu_seqlens)
    model(inputs, packing)
    return packing.sizes


def too_large(sizes: list[float]) -> tuple[int, ...]:
    """The layers whose scores should be in float32."""
    return tuple(layer for layer, size in enumerate(sizes) if not size <= LARGEST_HALF_SCORE)
