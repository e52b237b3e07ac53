"""Decision: the distribution over a question's labels is brought to the right one."""

import math
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from settle.data.batches import Batch
from settle.data.decisions.calibration import divergences, fit_temperature
from settle.data.decisions.prompt import all_labels
from settle.data.store import RowStore, TokenStore
from settle.model.decoder import Decoder
from settle.model.layers.freezable import FreezableModule, as_kind
from settle.model.layers.transfer import to_device
from settle.model.pretrained import Pretrained
from settle.train.objectives import Numbers, Objective, Rows, on_device
from settle.train.objectives._definition import hidden_states, log_softmax, logits_of

FULL_LEAD_NATS = 10.0  # of one label before another, that a model has to be able to reach to learn its rows to the end


class Decision(Objective):
    """KL of the labels' distribution from the target's, in nats per decision; other tokens are no part of it.

    A segment is one decision, and its last input is where the label is read: one forward pass a row. Targets may be
    distributions (`Batch.shares`).
    """

    rows: ClassVar[Rows] = "decision"
    is_default: ClassVar[bool] = True
    is_per_token: ClassVar[bool] = False
    needs_base: ClassVar[bool] = True
    judges_apart: ClassVar[bool] = False  # one temperature suits all
    prefers_last: ClassVar[bool] = True  # of many evaluations on a handful of rows the lowest is lucky
    passes: ClassVar[float] = 6.0
    fast_below: ClassVar[float] = 4096  # few rows of one token each teach a narrow base too little at the usual rate
    # with every layer adapted, a small model memorizes few rows instead of learning their classes
    adapts: ClassVar[str] = "last-third"

    question: str = Field("", description="what is asked about each row of a table; made of its column's name if empty")
    shuffle: bool | None = Field(
        None,
        description="change the options' places each epoch; when not given, where they differ from row to row",
    )
    scale: float | None = Field(
        None,
        gt=0,
        description="what the labels' scores are divided by in training; when not given 1, or less where the base's "
        "output table hardly tells the labels apart",
    )
    labels: Numbers = Field([], description="token ids of the labels, in their order; the tokenizer's when not given")

    def resolved(self, base: Pretrained) -> Self:
        """With the labels' ids. Raises DataError for a tokenizer that lacks them."""
        return self.model_copy(update={"labels": self.labels or list(all_labels(base.tokenizer).values())})

    def prepared(self, model: FreezableModule) -> Self:
        """With the scale that this model's labels need."""
        return self.model_copy(update={"scale": self.scale or label_scale(as_kind(model, Decoder), self.labels)})

    @property
    def heat(self) -> float:
        """The temperature of the training."""
        return self.scale or 1.0

    def loss(self, model: FreezableModule, inputs: Tensor, targets: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, int]:
        """Compute the loss of each segment's last target, which is its label, among all labels."""
        return self._apart(model, inputs, cu_seqlens, self._shares(targets, cu_seqlens))

    def count(self, batch: Batch) -> int:
        return len(batch.cu_seqlens) - 1

    def guessing(self, vocab_size: int) -> str:
        return f"ln({len(self.labels)} labels) = {math.log(len(self.labels)):.3f}"

    def batch_loss(self, model: FreezableModule, batch: Batch) -> tuple[Tensor, int]:
        return self._apart(model, *self._with_shares(model, batch))

    def by_definition(self, model: FreezableModule, batch: Batch) -> tuple[float, int]:
        model = as_kind(model, Decoder)
        last = batch.cu_seqlens[1:] - 1
        shares, total = batch.shares, 0.0
        if shares is None:
            shares = (batch.targets[last, None] == np.array(self.labels)).astype(float)
        for rows, logits in logits_of(model, hidden_states(model, batch, last)):
            for scores, wanted in zip(logits[:, self.labels] / (self.scale or 1.0), shares[rows], strict=True):
                options = int((wanted >= 0).sum())  # a row's options are its first labels
                p, log_q = wanted[:options].astype(float), log_softmax(scores[:options])
                total += float((p[p > 0] * (np.log(p[p > 0]) - log_q[p > 0])).sum())
        return total, len(last)

    def held_out_losses(self, model: FreezableModule, batches: Sequence[Batch]) -> list[tuple[float, int]]:
        """Evaluate at the one temperature that suits all batches.

        Models tuned on few rows become accurate before they become calibrated, which is corrected at export.
        """
        scores, shares = [], []
        for batch in batches:
            inputs, cu_seqlens, own = self._with_shares(model, batch)
            scores.append(self.scores(model, inputs, cu_seqlens, own).cpu().double())  # Apple's GPU has no float64
            shares.append(own.cpu().double())
        width = max(own.shape[1] for own in shares)
        filled = [
            [torch.nn.functional.pad(own, (0, width - own.shape[1]), value=nothing) for own in parts]
            for parts, nothing in ((scores, -math.inf), (shares, 0.0))
        ]
        all_scores, all_shares = (torch.cat(parts).numpy() for parts in filled)
        heat = self.heat * fit_temperature(all_scores / self.heat, np.maximum(all_shares, 0.0))
        return [
            (float(_gaps(own / heat, wanted).sum()), len(wanted)) for own, wanted in zip(scores, shares, strict=True)
        ]

    def frequency_loss(self, train: TokenStore, held_out: Sequence[Batch], vocab_size: int) -> float:
        """Return the loss of knowing how often each label is right among as many options.

        Before it learns, a model rests there.
        """
        assert isinstance(train, RowStore) and train.shares is not None
        wanted = np.concatenate([batch.shares for batch in held_out if batch.shares is not None]).astype(float)
        counts = (train.shares >= 0).sum(1)
        total = 0.0
        for own in wanted:
            options = int((own >= 0).sum())
            right = 1.0 + train.shares[counts == options, :options].sum(0)
            total += float(divergences(right / right.sum(), own[:options]))
        return total / len(wanted)

    def _with_shares(self, model: FreezableModule, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return inputs (N,), cu_seqlens (S+1,) and shares (S, K) on the model's device."""
        inputs, targets, cu_seqlens = on_device(model, batch)
        if batch.shares is None:
            return inputs, cu_seqlens, self._shares(targets, cu_seqlens)
        return inputs, cu_seqlens, to_device(torch.from_numpy(batch.shares), model.device)

    def _shares(self, targets: Tensor, cu_seqlens: Tensor) -> Tensor:
        labels = to_device(torch.tensor(self.labels), targets.device)
        return (targets[cu_seqlens[1:].long() - 1].unsqueeze(1) == labels).float()

    def _apart(self, model: FreezableModule, inputs: Tensor, cu_seqlens: Tensor, shares: Tensor) -> tuple[Tensor, int]:
        return _gaps(self.scores(model, inputs, cu_seqlens, shares) / self.heat, shares).sum(), len(shares)

    def scores(self, model: FreezableModule, inputs: Tensor, cu_seqlens: Tensor, shares: Tensor) -> Tensor:
        """Return the logits (S, K) of the labels behind each segment, in fp32 (fp64 stays fp64).

        They are -inf where `shares` (S, K) is negative: beyond a row's options.
        """
        model = as_kind(model, Decoder)
        hidden = model(inputs, cu_seqlens).index_select(0, cu_seqlens[1:].long() - 1)
        labels = to_device(torch.tensor(self.labels[: shares.shape[1]]), inputs.device)
        cast, head = model.head_operands()
        table = (head if head.requires_grad else cast).index_select(0, labels).to(hidden.dtype)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logits = hidden.to(wide) @ table.to(wide).t()
        if (cap := model.options.logit_soft_cap) is not None:
            logits = torch.tanh(logits / cap) * cap
        scores: Tensor = logits.masked_fill(shares < 0, -torch.inf)
        return scores


@torch.no_grad()
def label_scale(model: Decoder, labels: Sequence[int]) -> float:
    """Return what label scores are multiplied by, at most 1.

    It is the lead that one label can have over another, in nats, as a share of FULL_LEAD_NATS; the median of all pairs.
    The final norm gives every hidden state the length √D, so that a pair's lead is at most √D times the distance of the
    two rows of the output table. Where a base has hardly ever seen the labels these rows are nearly the same: a loss of
    the scores as they are would then push each row of data to the ends of what the model can say, where gradients
    vanish, and rows that are not told apart yet would never be.
    """
    factor = model.model.norm.factor()  # None of a norm without weights
    table = model.head_operands()[0]
    rows = table.index_select(0, to_device(torch.tensor(labels), table.device)).float()
    leads = torch.pdist(rows if factor is None else rows * factor.float()) * math.sqrt(rows.shape[1])
    return min(1.0, float(leads.median()) / FULL_LEAD_NATS) if len(leads) and leads.median() > 0 else 1.0


def _gaps(scores: Tensor, shares: Tensor) -> Tensor:
    """(S, K) terms of the KL of the scores' distribution from `shares`, both (S, K)."""
    log_q = torch.log_softmax(scores, -1)
    p = shares.clamp_min(0).to(log_q.dtype)
    # an option that is not there has log q = -inf, and one with p = 0 adds nothing
    return torch.where(p > 0, p * (p.clamp_min(torch.finfo(p.dtype).tiny).log() - log_q), p.new_zeros(()))
