"""Proof before the first step: on this recipe and this data, in a second, that the gradient is right.

All checks but two run on a float64 copy on the CPU, so that what is seen is the recipe's mathematics and not rounding.
Legend: N tokens of a packed batch, V vocabulary.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from settle.base.errors import ProofError
from settle.base.events import Events
from settle.data.batches import Batch
from settle.model.architectures import Decoder
from settle.train.gradient import backward
from settle.train.objectives import Objective

TOKENS, SEGMENTS = 128, 6  # of the part of a batch that is computed in float64
ROUNDING = 1e-8  # what float64 may differ by, relative
# a step along which every tensor changes the loss by about this much: far above rounding, and still a small step
RISE = 1e-7
DIFFERENCE = 1e-5  # of finite differences from the gradient, relative
# of a tensor's gradient from float64's, relative: rounding of the type's mantissa through all layers and back
AGREEMENT = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.3}


def prove(
    model: Decoder,
    objective: Objective,
    batch: Batch,
    vocab_size: int,
    rows: Sequence[Any],
    events: Events,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Run every check on a part of `batch`, whose rows are named by `rows`; returns what each found.

    Raises ProofError at the first failure, naming the tensor or the row. The model is left as it was.
    """
    proof = _Proof(model, objective, batch, vocab_size, rows, seed)
    checks: list[tuple[str, Callable[[], str]]] = [
        ("first loss", proof.first_loss),
        ("every tensor gets a gradient", proof.reaches_all),
        ("gradient in the compute type", proof.agrees),
        ("packed = unpacked, accumulated = big batch", proof.packs_and_accumulates),
        ("finite differences", proof.finite_differences),
    ]
    found: list[dict[str, Any]] = []
    for name, check in checks:
        try:
            detail = check()
        except ProofError as e:
            events.emit("proof", check=name, passed=False, detail=e.what)
            raise
        finally:
            model.zero_grad(set_to_none=True)
        found.append({"check": name, "passed": True, "detail": detail})
        events.emit("proof", check=name, passed=True, detail=detail)
    return found


@dataclass
class _Proof:
    """The checks, in the order they must run in: each goes on with what the one before it has computed."""

    model: Decoder
    objective: Objective
    batch: Batch
    vocab_size: int
    rows: Sequence[Any]
    seed: int
    small: Batch = field(init=False)
    exact: Decoder = field(init=False)
    mean: float = field(init=False, default=0.0)  # loss of `small` in float64
    dead: list[str] = field(init=False, default_factory=list)

    def first_loss(self) -> str:
        with torch.no_grad():
            total, count = self.objective.batch_loss(self.model, self.batch)
        named = "; ".join(map(str, self.rows[:3]))
        if count == 0:
            raise ProofError(f"the first batch has nothing to learn from: {named}", "look at these rows of your data")
        loss, expected = float(total) / count, math.log(self.vocab_size)
        if not abs(loss - expected) < 0.1 * expected:
            raise ProofError(
                f"the first loss is {loss:.3f}, an untrained model's is ln({self.vocab_size}) = {expected:.3f}",
                f"the first weights or the targets are wrong: check the model's settings and these rows: {named}",
            )
        return f"{loss:.3f} nats, ln(V) = {expected:.3f}"

    def reaches_all(self) -> str:
        """Every tensor is trained. One may have a gradient of zero at the first step only; see finite_differences."""
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                raise ProofError(f"{name} is frozen", "it would never be trained: check the model's settings")
        self.small = shorten(self.batch, TOKENS, SEGMENTS)
        self.exact = copy.deepcopy(self.model).to("cpu", torch.float64)
        self.exact.compute_dtype = torch.float64
        self.mean = backward(self.exact, self.objective, [self.small])
        for name, parameter in self.exact.named_parameters():
            if parameter.grad is None or not torch.isfinite(parameter.grad).all():
                raise ProofError(f"{name} gets no finite gradient", "it would never be trained: report this")
            if not parameter.grad.any():
                self.dead.append(name)
        return f"{sum(1 for _ in self.exact.parameters())} tensors"

    def agrees(self) -> str:
        """Loss and gradients as training will compute them, against float64."""
        allowed = AGREEMENT[self.model.compute_dtype]
        mean = backward(self.model, self.objective, [self.small])
        if not abs(mean - self.mean) <= 0.1 * allowed * abs(self.mean):
            raise ProofError(f"the loss is {mean:.6f}, in float64 it is {self.mean:.6f}", "try --dtype float32")
        worst, name = 0.0, ""
        for (key, ours), exact in zip(self.model.named_parameters(), self.exact.parameters(), strict=True):
            off = _relative(_grad(ours).cpu().double() - _grad(exact), _grad(exact))
            if not off <= worst:
                worst, name = off, key
        kind = str(self.model.compute_dtype).removeprefix("torch.")
        if not worst <= allowed:
            raise ProofError(f"{name}: its gradient in {kind} is {worst:.1e} off float64's", "try --dtype float32")
        return f"{kind}, worst tensor {name}: {worst:.1e}"

    def packs_and_accumulates(self) -> str:
        """Rows one by one, accumulated, give the loss and the gradient that they give packed in one batch."""
        norms = [float(_grad(p).norm()) for p in self.exact.parameters()]
        pieces = list(_segments(self.small))
        apart = backward(self.exact, self.objective, pieces, scale=-1.0)  # what is left in .grad is the difference
        if not abs(apart - self.mean) <= ROUNDING * abs(self.mean):
            row = self._leaking(pieces)
            raise ProofError(
                f"packed, the loss is {self.mean:.6f}, row by row {apart:.6f}: {row} is seen by another or sees it",
                "attention or positions cross a document: report this",
            )
        off = [
            (float(_grad(p).norm()) / (norm + 1e-12), n)
            for (n, p), norm in zip(self.exact.named_parameters(), norms, strict=True)
        ]
        worst, name = max(off)
        if not worst <= ROUNDING:
            raise ProofError(f"{name}: the accumulated gradient is {worst:.1e} off the whole batch's", "report this")
        return f"{len(pieces)} rows, worst tensor {name}: {worst:.1e}"

    def _leaking(self, pieces: list[Batch]) -> str:
        """The first row that changes what comes before it or that the rows before it change."""
        with torch.no_grad():
            for i in range(1, len(pieces)):
                first = _rows(self.small, self.small.cu_seqlens[: i + 2])
                packed = float(self.objective.batch_loss(self.exact, first)[0])
                alone = sum(float(self.objective.batch_loss(self.exact, p)[0]) for p in pieces[: i + 1])
                if not abs(packed - alone) <= ROUNDING * abs(alone):
                    return f"row {i} ({self.rows[i]})" if i < len(self.rows) else f"row {i}"
        return "a row"

    def finite_differences(self) -> str:
        """The slope of the loss along one direction in all tensors at once; on failure, tensor by tensor.

        The direction is the gradient, which shows a wrong scale, plus a random one, which shows a wrong angle; each
        tensor's share is such that all of them change the loss equally.
        """
        parameters = dict(self.exact.named_parameters())
        random = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():  # off the special point that the first weights may be
            for p in parameters.values():
                p.add_(torch.randn(p.shape, generator=random, dtype=p.dtype), alpha=0.02)
        self.exact.zero_grad(set_to_none=True)
        backward(self.exact, self.objective, [self.small])
        for name in self.dead:
            if not _grad(parameters[name]).any():
                raise ProofError(f"{name} gets a gradient of zero", "it would never be trained: report this")
        if self._difference(parameters) > DIFFERENCE / len(parameters):
            for name, parameter in parameters.items():
                off = self._difference({name: parameter})
                if not off <= DIFFERENCE:
                    raise ProofError(f"{name}: its gradient is {off:.1e} off finite differences", "report this")
        return f"{len(parameters)} tensors, relative difference below {DIFFERENCE:.0e}"

    def _difference(self, parameters: dict[str, torch.nn.Parameter]) -> float:
        """The gradient's slope and the seen one along the direction in `parameters`: how far apart, relative."""
        told, losses = 0.0, []
        with torch.no_grad():
            for sign in (+1, -2, +1):
                random = torch.Generator().manual_seed(self.seed + 1)
                for p in parameters.values():
                    grad = _grad(p)
                    direction = torch.randn(p.shape, generator=random, dtype=p.dtype)
                    direction.mul_(grad.norm() / direction.norm()).add_(grad).div_(grad.norm() ** 2)
                    told += float((grad * direction).sum()) if not losses else 0.0
                    p.add_(direction, alpha=sign * RISE)
                total, count = self.objective.batch_loss(self.exact, self.small)
                losses.append(float(total) / count)
        seen = (losses[0] - losses[1]) / (2 * RISE)
        return abs(seen - told) / abs(told)


def shorten(batch: Batch, tokens: int, segments: int) -> Batch:
    """The beginning of a packed batch: at most so many tokens and segments, and cut into at least two of these."""
    n = min(tokens, len(batch.inputs))
    cuts = [int(c) for c in batch.cu_seqlens if c < n][:segments]
    if len(cuts) == segments:
        n = min(n, int(batch.cu_seqlens[segments]))
    edges = {*cuts, n}
    if len(edges) < 3 and n > 2:
        edges.add(n // 3)
    return _rows(batch, np.array(sorted(edges), dtype=batch.cu_seqlens.dtype))


def _rows(batch: Batch, edges: np.ndarray) -> Batch:
    """The part of a batch between the first and the last edge, its segments bounded by `edges` (S+1,)."""
    first, last = int(edges[0]), int(edges[-1])
    positions = np.concatenate([np.arange(b - a) for a, b in zip(edges[:-1], edges[1:], strict=True)])
    return Batch(batch.inputs[first:last], batch.targets[first:last], edges - edges[0], positions)


def _segments(batch: Batch) -> Iterator[Batch]:
    for i in range(len(batch.cu_seqlens) - 1):
        yield _rows(batch, batch.cu_seqlens[i : i + 2])


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _relative(difference: Tensor, whole: Tensor) -> float:
    """Norm ÷ norm. Where the whole is as good as nothing, rounding is all there is: that counts as no difference."""
    size = float(whole.norm())
    return float(difference.norm()) / size if size > 1e-9 else 0.0
