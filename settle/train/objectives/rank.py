"""Rank: whether a passage answers a question, by a cross-encoder (arXiv:1901.04085)."""

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from settle.data.batches import Batch
from settle.model.encoders import PairScorer
from settle.model.layers.freezable import FreezableModule, as_kind
from settle.train.objectives import Objective, Rows
from settle.train.objectives._definition import pair_texts


class Rank(Objective):
    """Cross-entropy of "answers" against "does not", in nats per pair.

    Segment 2i of a batch is the question of pair i, 2i + 1 the passage, whose last target is 1 where it answers.
    """

    rows: ClassVar[Rows] = "pair"
    is_default: ClassVar[bool] = True
    is_per_token: ClassVar[bool] = False
    needs_base: ClassVar[bool] = True
    segments_per_row: ClassVar[int] = 2

    answer_weight: float = Field(
        2.5, gt=0, description="weight of a pair that answers, relative to one that does not, of which there are more"
    )

    def loss(self, model: FreezableModule, inputs: Tensor, targets: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, int]:
        reranker = as_kind(model, PairScorer)
        texts, labels = segments(inputs, targets, cu_seqlens)
        logits = reranker.pairs(texts[0::2], texts[1::2])
        weight = 1 + (self.answer_weight - 1) * labels
        losses = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), weight, reduction="sum")
        return losses, len(labels)

    def by_definition(self, model: FreezableModule, batch: Batch) -> tuple[float, int]:
        reranker = as_kind(model, PairScorer)
        texts, answers = pair_texts(batch)
        ids = [torch.from_numpy(text).to(model.device) for text in texts]
        with torch.no_grad():
            logits = reranker.pairs(ids[0::2], ids[1::2]).cpu().double().numpy()
        yes, no = np.logaddexp(0.0, -logits), np.logaddexp(0.0, logits)  # -log σ(z), -log (1 - σ(z))
        return float(np.where(answers == 1, self.answer_weight * yes, no).sum()), len(answers)

    def count(self, batch: Batch) -> int:
        return (len(batch.cu_seqlens) - 1) // 2


def segments(inputs: Tensor, targets: Tensor, cu_seqlens: Tensor) -> tuple[list[Tensor], Tensor]:
    """Split a batch into its texts, each its ids, and the mark of each pair (P,): 1 where the passage answers."""
    bounds = cu_seqlens.tolist()
    texts = [inputs[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]
    return texts, targets[cu_seqlens[2::2].long() - 1]
