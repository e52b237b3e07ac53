"""Teachers: a frozen model in torch, or the record of its distributions.

Letters: N tokens of a packed batch, P of them that are learned from, L layers, T hidden width of the teacher.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from settle.base.errors import DataError
from settle.data.batches import Batch
from settle.data.likelihoods import Likelihoods
from settle.model.decoder import Decoder
from settle.model.layers.freezable import FreezableModule
from settle.train.objectives._divergence import Dense, Mean, Sparse, TeacherBatch
from settle.train.objectives.next_token import token_losses

REMEMBERED_BYTES = 1 << 28  # cache of a teacher's outputs on held-out text, which is evaluated many times


@dataclass(frozen=True)
class TeacherOutput:
    """What a teacher computes for a batch.

    Distributions of its P learned tokens, and the outputs (P, T) of the layers that were requested.
    """

    distributions: TeacherBatch
    states: tuple[Tensor, ...] = ()


class LiveTeacher:
    """A frozen model. layers: whose outputs are requested; others: models whose probabilities are averaged with its."""

    def __init__(self, model: Decoder, layers: Sequence[int] = (), others: Sequence[Decoder] = ()) -> None:
        self.model, self.layers = model, tuple(layers)
        self.models = tuple(one.eval() for one in (model, *others))
        self._remembered: dict[bytes, tuple[Tensor, ...]] = {}
        self._room = REMEMBERED_BYTES

    def follow(self, student: FreezableModule) -> None:
        """Compute in the student's type: a proof in fp32 sees no rounding, neither the student's nor the teacher's."""
        for model in self.models:
            model.compute_dtype = student.compute_dtype

    def find(self, batch: Batch) -> Batch:
        """Return the batch as it is: a model answers for any row."""
        return batch

    def output(self, inputs: Tensor, cu_seqlens: Tensor, counted: Tensor, record: Tensor | None) -> TeacherOutput:
        """Compute what the student is compared with.

        inputs (N,), cu_seqlens (S+1,), counted (P,): which of the N. Without a gradient the batch is held-out text,
        whose output is cached.
        """
        key = _key(self.model.compute_dtype, inputs, cu_seqlens, counted) if not torch.is_grad_enabled() else b""
        cached = self._remembered.get(key)
        if cached is None:
            with torch.no_grad():
                hidden, states = with_states(self.model, inputs, cu_seqlens, self.layers)
                others = [model(inputs, cu_seqlens) for model in self.models[1:]]
                cached = tuple(t.index_select(0, counted) for t in (hidden, *others, *states))
            size = sum(t.nbytes for t in cached)
            if key and size <= self._room:
                self._room -= size
                self._remembered[key] = cached
        number = len(self.models)
        dense = tuple(
            Dense(states, model.head_operands()[0], model.options.logit_soft_cap)
            for states, model in zip(cached[:number], self.models, strict=True)
        )
        return TeacherOutput(dense[0] if number == 1 else Mean(dense), cached[number:])

    @torch.no_grad()
    def losses(
        self, inputs: Tensor, cu_seqlens: Tensor, counted: Tensor, targets: Tensor, record: Tensor | None
    ) -> Tensor:
        """Nats that it pays for each of the P targets (P,)."""
        paid = [token_losses(m, m(inputs, cu_seqlens).index_select(0, counted), targets) for m in self.models]
        return math.log(len(paid)) - torch.stack(paid).neg().logsumexp(0)


class RecordedTeacher:
    """Recorded distributions of the very rows that are learned from, found by their hash."""

    layers: tuple[int, ...] = ()

    def __init__(self, record: Likelihoods) -> None:
        self.record = record

    @classmethod
    def open(cls, folder: Path) -> "RecordedTeacher":
        """Open a record. Raises DataError when the folder holds no whole one."""
        return cls(Likelihoods(folder))

    def follow(self, student: FreezableModule) -> None:
        """No-op: recorded distributions have a fixed dtype."""

    def find(self, batch: Batch) -> Batch:
        """Return the batch with the position of each token in the record. Raises DataError for a row it never saw."""
        if batch.record is not None:
            return batch
        places = [self._place(window) for window in windows_of(batch)]
        return replace(batch, record=np.concatenate(places))

    def _place(self, window: np.ndarray) -> np.ndarray:
        index = self.record.find(window)
        if index is None:
            raise DataError(
                f"the teacher's record in {self.record.folder} does not have a row of {len(window)} tokens",
                "it was made of other rows: delete the folder, and it is made again",
            )
        first = int(self.record.positions[index])
        return np.arange(first, first + len(window) - 1)

    def output(self, inputs: Tensor, cu_seqlens: Tensor, counted: Tensor, record: Tensor | None) -> TeacherOutput:
        """Read the record at the positions `record` (N,) of each token."""
        assert record is not None, "find the batch first"
        rows = self.record.at(record[counted].cpu().numpy())
        ids, drawn = (np.asarray(rows.top_ids, np.int64), np.asarray(rows.sampled_ids, np.int64))
        arrays = (ids, rows.top_logprobs, drawn, rows.sampled_logprobs, rows.rest_logmass)
        tensors = [torch.from_numpy(np.ascontiguousarray(a)).to(inputs.device) for a in arrays]
        return TeacherOutput(Sparse(*tensors))

    def losses(
        self, inputs: Tensor, cu_seqlens: Tensor, counted: Tensor, targets: Tensor, record: Tensor | None
    ) -> Tensor:
        """Compute what `LiveTeacher.losses` does."""
        assert record is not None, "find the batch first"
        return -torch.from_numpy(np.asarray(self.record.came_logprobs[record[counted].cpu().numpy()]))


Teacher = LiveTeacher | RecordedTeacher


def windows_of(batch: Batch) -> list[np.ndarray]:
    """Return what the segments of a batch are recorded as: inputs and last target, 0 where that is not learned."""
    bounds = batch.cu_seqlens.tolist()
    pairs = zip(bounds, bounds[1:], strict=False)
    return [np.append(batch.inputs[a:b], max(int(batch.targets[b - 1]), 0)) for a, b in pairs]


def with_states(
    model: Decoder, inputs: Tensor, cu_seqlens: Tensor, layers: Sequence[int]
) -> tuple[Tensor, list[Tensor]]:
    """Return the model's result (N, D), and the outputs (N, D) of some of its layers."""
    states: dict[int, Tensor] = {}

    def keep(number: int) -> Callable[[object, object, Tensor], None]:
        return lambda module, args, out: states.__setitem__(number, out)

    hooks = [model.model.layers[number].register_forward_hook(keep(number)) for number in set(layers)]
    try:
        hidden = model(inputs, cu_seqlens)
    finally:
        for hook in hooks:  # before the backward pass, in which a recomputed layer would call them again
            hook.remove()
    return hidden, [states[number] for number in layers]


def _key(dtype: torch.dtype, *tensors: Tensor) -> bytes:
    digest = sha256(str(dtype).encode())
    for tensor in tensors:
        digest.update(tensor.cpu().numpy().tobytes())
        digest.update(b"|")
    return digest.digest()
