"""Contrastive: a question's vector moves nearer to its passage than to the other passages of the batch.

InfoNCE, arXiv:1807.03748.
"""

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from settle.data.batches import Batch
from settle.model.encoder import padded
from settle.model.encoders import TextEncoder
from settle.model.layers.freezable import FreezableModule, as_kind
from settle.train.objectives import Objective, Rows
from settle.train.objectives._definition import log_softmax, pair_texts
from settle.train.objectives.rank import segments


class Contrastive(Objective):
    """Cross-entropy of a question's own passage among all passages of the batch, in nats per question.

    A passage that does not answer is one more to tell from the right one; the same passage twice is not.
    """

    rows: ClassVar[Rows] = "pair"
    is_per_token: ClassVar[bool] = False
    needs_base: ClassVar[bool] = True
    segments_per_row: ClassVar[int] = 2

    temperature: float = Field(0.05, gt=0, description="what cosines are divided by")

    def loss(self, model: FreezableModule, inputs: Tensor, targets: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, int]:
        texts, labels = segments(inputs, targets, cu_seqlens)
        encoder = as_kind(model, TextEncoder)
        questions, passages = (encoder.vectors(*padded(side, encoder.device)) for side in (texts[0::2], texts[1::2]))
        own = torch.arange(len(passages), device=questions.device)
        known = {tuple(text.tolist()): number for number, text in reversed(list(enumerate(texts[1::2])))}
        first = torch.tensor([known[tuple(text.tolist())] for text in texts[1::2]], device=questions.device)
        same = (first[:, None] == first[None]) & (own[:, None] != own[None])
        scores = (questions @ passages.T / self.temperature).masked_fill(same, -torch.inf)
        asked = labels == 1
        return F.cross_entropy(scores[asked], own[asked], reduction="sum"), int(asked.sum())

    def by_definition(self, model: FreezableModule, batch: Batch) -> tuple[float, int]:
        texts, answers = pair_texts(batch)
        encoder, total = as_kind(model, TextEncoder), 0.0
        with torch.no_grad():
            each = [encoder.vectors(*padded([torch.from_numpy(text)], encoder.device)) for text in texts]
        vectors = [vector.cpu().double().numpy()[0] for vector in each]
        questions, passages, names = vectors[0::2], np.stack(vectors[1::2]), [text.tobytes() for text in texts[1::2]]
        for own in np.flatnonzero(answers == 1).tolist():
            others = [i for i, name in enumerate(names) if i == own or name != names[own]]
            scores = log_softmax(passages[others] @ questions[own] / self.temperature)
            total -= scores[others.index(own)]
        return float(total), int((answers == 1).sum())

    def count(self, batch: Batch) -> int:
        return int((batch.targets == 1).sum())
