"""Direct preference optimization (arXiv:2305.18290): the better answer is made likelier than the worse one."""

import math
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from settle.data.batches import Batch
from settle.model.decoder import Decoder
from settle.model.layers.freezable import FreezableModule, as_kind
from settle.train.objectives import Objective, Preferences, Rows, on_device, supervised
from settle.train.objectives._definition import supervised_places, target_nats
from settle.train.objectives.next_token import token_losses


class DPO(Objective):
    """-log σ(β (chosen - rejected)), each the rise of an answer's log-probability over the base's; mean over pairs.

    Segment 2i of a batch is the better answer of pair i, 2i + 1 the worse. The base is the model without its adapter,
    so only a model with one can be trained. Before the first step the loss is ln 2.
    """

    rows: ClassVar[Rows] = "preference"
    is_default: ClassVar[bool] = True
    is_per_token: ClassVar[bool] = False
    needs_base: ClassVar[bool] = True
    compares_with_base: ClassVar[bool] = True
    segments_per_row: ClassVar[int] = 2
    first_loss: ClassVar[float | None] = math.log(2)

    beta: float = Field(
        0.1, gt=0, description="weight of the log-probability ratio between model and base (beta of DPO)"
    )

    def loss(self, model: FreezableModule, inputs: Tensor, targets: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, int]:
        _, _, rewards = self._ranked(model, inputs, targets, cu_seqlens)
        return -logsigmoid(rewards).sum(), len(rewards)

    def preferences(self, model: FreezableModule, batch: Batch) -> Preferences:
        return self._ranked(model, *on_device(model, batch))

    def count(self, batch: Batch) -> int:
        return (len(batch.cu_seqlens) - 1) // 2

    def by_definition(self, model: FreezableModule, batch: Batch) -> tuple[float, int]:
        model = as_kind(model, Decoder)
        edges = np.searchsorted(supervised_places(batch), batch.cu_seqlens[:-1])

        def answers() -> np.ndarray:
            """Log-probability of each better and worse answer (pairs, 2)."""
            padded = np.append(-target_nats(model, batch), 0.0)  # an answer without a target has a sum of zero
            sums = np.add.reduceat(padded, edges) * (np.diff(edges, append=len(padded) - 1) > 0)
            return sums.reshape(-1, 2)

        policy = answers()
        with model.without_adapters():
            rise = policy - answers()
        margin = self.beta * (rise[:, 0] - rise[:, 1])
        return float(np.logaddexp(0.0, -margin).sum()), len(margin)  # -log σ(margin)

    def _ranked(self, model: FreezableModule, inputs: Tensor, targets: Tensor, cu_seqlens: Tensor) -> Preferences:
        model = as_kind(model, Decoder)
        with torch.no_grad(), model.without_adapters():
            base = answer_losses(model, inputs, targets, cu_seqlens)
        tuned = answer_losses(model, inputs, targets, cu_seqlens)
        rise = base - tuned
        return Preferences(base[1::2] - base[0::2], tuned[1::2] - tuned[0::2], self.beta * (rise[0::2] - rise[1::2]))


def answer_losses(model: Decoder, inputs: Tensor, targets: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Nats of the supervised tokens of each segment: (S,)."""
    counted = supervised(targets)
    losses = token_losses(model, model(inputs, cu_seqlens).index_select(0, counted), targets.index_select(0, counted))
    segment = torch.searchsorted(cu_seqlens, counted, right=True) - 1
    return losses.new_zeros(len(cu_seqlens) - 1).index_add(0, segment, losses)
