"""Decision: the distribution over a question's labels is brought to the right one."""

import math
from typing import ClassVar, Self

import torch
from pydantic import Field, field_validator
from torch import Tensor

from settle.data.batches import Batch
from settle.data.decisions.prompt import all_labels
from settle.model.decoder import Decoder
from settle.model.pretrained import Pretrained
from settle.train.objectives import Objective, Rows, on_device


class Decision(Objective):
    """KL of the labels' distribution from the target's, in nats per decision; other tokens are no part of it.

    A segment is one decision, and its last input is where the label is read: one forward pass a row. Targets may be
    distributions (`Batch.shares`).
    """

    rows: ClassVar[Rows] = "decision"
    is_default: ClassVar[bool] = True
    is_per_token: ClassVar[bool] = False
    needs_base: ClassVar[bool] = True

    question: str = Field("", description="what is asked about each row of a table; made of its column's name if empty")
    shuffle: bool | None = Field(
        None,
        description="change the options' places each epoch; when not given, where they differ from row to row",
    )
    labels: list[int] = Field([], description="token ids of the labels, in their order; the tokenizer's when not given")

    @field_validator("labels", mode="before")
    @classmethod
    def _numbers(cls, value: object) -> object:
        return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    def resolved(self, base: Pretrained) -> Self:
        """With the labels' ids. Raises DataError for a tokenizer that lacks them."""
        return self.model_copy(update={"labels": self.labels or list(all_labels(base.tokenizer).values())})

    def loss(self, model: Decoder, inputs: Tensor, targets: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, int]:
        """The last target of each segment is its label, of all labels."""
        labels = torch.tensor(self.labels, device=targets.device)
        shares = (targets[cu_seqlens[1:].long() - 1].unsqueeze(1) == labels).float()
        return self._apart(model, inputs, cu_seqlens, shares)

    def count(self, batch: Batch) -> int:
        return len(batch.cu_seqlens) - 1

    def guessing(self, vocab_size: int) -> str:
        return f"ln({len(self.labels)} labels) = {math.log(len(self.labels)):.3f}"

    def batch_loss(self, model: Decoder, batch: Batch) -> tuple[Tensor, int]:
        inputs, targets, cu_seqlens = on_device(model, batch)
        if batch.shares is None:
            return self.loss(model, inputs, targets, cu_seqlens)
        return self._apart(model, inputs, cu_seqlens, torch.from_numpy(batch.shares).to(model.device))

    def _apart(self, model: Decoder, inputs: Tensor, cu_seqlens: Tensor, shares: Tensor) -> tuple[Tensor, int]:
        log_q = torch.log_softmax(self.scores(model, inputs, cu_seqlens, shares), -1)
        p = shares.clamp_min(0).to(log_q.dtype)
        # an option that is not there has log q = -inf, and one with p = 0 adds nothing
        gaps = torch.where(p > 0, p * (p.clamp_min(torch.finfo(p.dtype).tiny).log() - log_q), p.new_zeros(()))
        return gaps.sum(), len(shares)

    def scores(self, model: Decoder, inputs: Tensor, cu_seqlens: Tensor, shares: Tensor) -> Tensor:
        """Logits (S, K) of the labels behind each segment in fp32 (fp64 stays fp64), -inf where `shares` (S, K) is
        negative: beyond a row's options."""
        hidden = model(inputs, cu_seqlens).index_select(0, cu_seqlens[1:].long() - 1)
        labels = torch.tensor(self.labels[: shares.shape[1]], device=inputs.device)
        cast, head = model.head_operands()
        table = (head if head.requires_grad else cast).index_select(0, labels).to(hidden.dtype)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logits = hidden.to(wide) @ table.to(wide).t()
        if (cap := model.options.logit_soft_cap) is not None:
            logits = torch.tanh(logits / cap) * cap
        scores: Tensor = logits.masked_fill(shares < 0, -torch.inf)
        return scores
