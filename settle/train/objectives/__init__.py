"""Objectives: what a batch teaches. A loss is a sum and a count, so that accumulation changes nothing."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import BeforeValidator
from torch import Tensor

from settle.base.registry import Part
from settle.data.batches import Batch
from settle.data.store import TokenStore
from settle.model.adapters import Adapter
from settle.model.layers.freezable import FreezableModule
from settle.model.layers.transfer import on_host, to_device
from settle.model.pretrained import Pretrained
from settle.train.settled import frequency_loss

MOST_TIMES = 8.0  # that a rate is raised
FLOOR_TOKENS = 1 << 20  # tokens of the training text whose frequencies are counted


def _listed(value: object) -> object:
    return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value


# with commas between them, as a command line gives them
Numbers = Annotated[list[int], BeforeValidator(_listed)]
Names = Annotated[list[str], BeforeValidator(_listed)]
Rows = Literal["text", "preference", "pair", "decision"]
ROW_NAMES: dict[Rows, str] = {
    "text": "rows of one answer",
    "preference": "pairs of a better and a worse answer",
    "pair": "pairs of a question and a passage",
    "decision": "rows of a state, a question and its right option",
}


class Preferences(NamedTuple):
    """Pairs of answers, each tensor (P,).

    base, tuned: by how many nats the better answer is likelier than the worse one, to the base and to the tuned model.
    rewards: the reward of the better answer less that of the worse one.
    """

    base: Tensor
    tuned: Tensor
    rewards: Tensor


class Objective(Part):
    """A loss over packed rows."""

    rows: ClassVar[Rows]
    is_default: ClassVar[bool] = False  # tuning chooses it for its rows when none is named
    is_per_token: ClassVar[bool] = True  # the loss is nats per token, so it can be shown in bits per byte
    needs_base: ClassVar[bool] = False  # it can only train a pretrained model, with which it compares or is resolved
    judges_apart: ClassVar[bool] = True  # the held-out loss of a batch does not depend on the other batches
    prefers_last: ClassVar[bool] = False  # the decayed weights are taken, unless others are better by their noise
    compares_with_base: ClassVar[bool] = False  # its reference is the model without its adapter
    takes_one_pass: ClassVar[bool] = False  # `loss` calls the model once: ranks can share out its weights
    segments_per_row: ClassVar[int] = 1  # segments of a batch that only mean something together
    passes: ClassVar[float] = 3.0  # over the rows, that a tuning run without a budget is expected to take
    fast_below: ClassVar[float] = 0  # hidden width below which an adapter's rate is raised
    adapts: ClassVar[str] = "all-linear"  # the targets of an adapter, where nobody names them
    first_loss: ClassVar[float | None] = None  # every model's loss before its first step, where it is known

    @classmethod
    def suits(cls, kind: str) -> bool:
        """Return whether it learns from rows of this kind (`RowCorpus.kind`)."""
        return cls.rows == (kind if kind in ("preference", "pair", "decision") else "text")

    @property
    def evaluator(self) -> "Objective":
        """The objective that held-out text is evaluated by."""
        return self

    @abstractmethod
    def loss(self, model: FreezableModule, inputs: Tensor, targets: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, int]:
        """Compute the loss of inputs, targets (N,) in segments cu_seqlens (S+1,).

        Returns the sum of nats with its gradient, and how many targets were counted. A target of -1 is not counted.
        """

    def count(self, batch: Batch) -> int:
        """Return what the sum of `loss` will be divided by."""
        return int((batch.targets >= 0).sum())

    def guessing(self, vocab_size: int) -> str:
        """Say what the loss of a model that knows nothing is."""
        return f"ln(V) = {math.log(vocab_size):.3f}"

    def batch_loss(self, model: FreezableModule, batch: Batch) -> tuple[Tensor, int]:
        """`loss` of a packed batch, brought to where the model is."""
        return self.loss(model, *on_device(model, batch))

    def held_out_losses(self, model: FreezableModule, batches: Sequence[Batch]) -> list[tuple[float, int]]:
        """Evaluate batches of rows that nothing is learned from: a sum of nats and a count for each."""
        losses = [self.batch_loss(model, batch) for batch in batches]
        totals = torch.stack([total for total, _ in losses]).tolist()  # at once: each question waits for the device
        return [(total, count) for total, (_, count) in zip(totals, losses, strict=True)]

    def frequency_loss(self, train: TokenStore, held_out: Sequence[Batch], vocab_size: int) -> float:
        """Return the held-out loss of knowing only how often each target occurs in (a part of) the training data."""
        counts = np.bincount(train.tokens[:FLOOR_TOKENS], minlength=vocab_size)
        targets = [np.bincount(b.targets[b.targets >= 0], minlength=vocab_size) for b in held_out]
        return frequency_loss(counts, np.sum(targets, axis=0))

    def by_definition(self, model: FreezableModule, batch: Batch) -> tuple[float, int] | None:
        """Compute the sum and the count of `batch_loss` from the published formula.

        In numpy, from the model's outputs, without a line that `loss` uses. The proof before the first step compares
        the two. None: not stated.
        """
        return None

    # --- for an objective that needs more than the model and its rows ---

    def resolved(self, base: Pretrained) -> Self:
        """Return it with everything pinned down that its settings only name, as a plan keeps it.

        base: the `Pretrained` that is trained. Raises UsageError for what does not go together.
        """
        return self

    def prepared(self, model: FreezableModule) -> Self:
        """Ready for `loss`. model: what is trained, on its device and with its compute type."""
        return self

    def rate(self, adapter: Adapter, width: int) -> float:
        """Return the default learning rate of an adapter over a base of this hidden width."""
        return max(adapter.rate(width), adapter.LEARNING_RATE * min(MOST_TIMES, self.fast_below / width))

    def bytes_beside(self, number: int) -> float:
        """Bytes that it needs beside the model. number: bytes of a number."""
        return 0.0

    def annotated(self, batch: Batch) -> Batch:
        """Return the batch with what must be computed while its rows are whole."""
        return batch

    def reference(self, model: FreezableModule, batch: Batch) -> tuple[float, int] | None:
        """Return the teacher's own loss on the targets: a sum of nats and a count; None without a teacher."""
        return None

    def preferences(self, model: FreezableModule, batch: Batch) -> Preferences:
        """How the base and the model rank the pairs of a batch, for an objective of preferences that compares both."""
        raise NotImplementedError


def on_device(model: FreezableModule, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs (N,), targets (N,), cu_seqlens (S+1,) on the model's device."""
    device = model.device
    inputs, targets, cu_seqlens = (
        to_device(torch.from_numpy(a), device) for a in (batch.inputs, batch.targets, batch.cu_seqlens)
    )
    return inputs, targets, cu_seqlens


def supervised(targets: Tensor) -> Tensor:
    """Return the places of the targets (N,) that are counted, (P,), on the targets' device."""
    return to_device((on_host(targets) >= 0).nonzero().squeeze(1), targets.device)
