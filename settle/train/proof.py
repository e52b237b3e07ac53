"""Proof before the first step: on this recipe and this data, in seconds, that the gradient is right.

Checks: finite differences, packed = unpacked, accumulated = big batch, every tensor gets a gradient,
first loss ≈ ln V. Legend: N tokens of a packed batch, V vocabulary.
"""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from settle.base.errors import ProofError
from settle.base.events import Events
from settle.data.batches import Batch
from settle.model.architectures import Decoder
from settle.train.objectives import Objective

PROBED_TENSORS = 6  # finite differences cost two forward passes each


def prove(
    model: Decoder,
    objective: Objective,
    batch: Batch,
    vocab_size: int,
    rows: list[Any],
    events: Events,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Run every check on a small part of `batch`; returns what each found. Raises ProofError at the first failure.

    The model is left as it was: the checks work on a float64 copy on the CPU, so that what is seen is the
    recipe's mathematics and not rounding.
    """
    small = shorten(batch, 192)
    exact = copy.deepcopy(model).to("cpu", torch.float64)
    exact.compute_dtype = torch.float64
    found: list[dict[str, Any]] = []
    checks: list[tuple[str, Callable[[], str]]] = [
        ("first loss", lambda: _first_loss(model, objective, batch, vocab_size, rows)),
        ("packed = unpacked", lambda: _packed(exact, objective, small)),
        ("accumulated = big batch", lambda: _accumulated(exact, objective, small)),
        ("every tensor gets a gradient", lambda: _reaches_all(exact, objective, small)),
        ("finite differences", lambda: _finite_differences(exact, objective, small, seed)),
    ]
    for name, check in checks:
        try:
            detail = check()
        except ProofError as e:
            events.emit("proof", check=name, passed=False, detail=e.what)
            raise
        found.append({"check": name, "passed": True, "detail": detail})
        events.emit("proof", check=name, passed=True, detail=detail)
    return found


def shorten(batch: Batch, tokens: int) -> Batch:
    """The first `tokens` tokens of a packed batch, cut into at least two segments."""
    n = min(tokens, len(batch.inputs))
    cuts = {int(c) for c in batch.cu_seqlens if c < n} | {0, n}
    if len(cuts) < 3 and n > 2:
        cuts.add(n // 3)
    edges = np.array(sorted(cuts), dtype=batch.cu_seqlens.dtype)
    return _rows(batch, edges)


def _rows(batch: Batch, edges: np.ndarray) -> Batch:
    """The part of a batch between the first and the last edge, its segments bounded by `edges` (S+1,)."""
    first, last = int(edges[0]), int(edges[-1])
    positions = np.concatenate([np.arange(b - a) for a, b in zip(edges[:-1], edges[1:], strict=True)])
    return Batch(batch.inputs[first:last], batch.targets[first:last], edges - edges[0], positions)


def _segments(batch: Batch) -> Iterator[Batch]:
    for i in range(len(batch.cu_seqlens) - 1):
        yield _rows(batch, batch.cu_seqlens[i : i + 2])


def _first_loss(model: Decoder, objective: Objective, batch: Batch, vocab_size: int, rows: list[Any]) -> str:
    with torch.no_grad():
        total, count = objective.batch_loss(model, batch)
    if count == 0:
        raise ProofError(f"the first batch has nothing to learn from: {rows[:3]}", "look at these rows of your data")
    loss, expected = float(total) / count, math.log(vocab_size)
    if not abs(loss - expected) < 0.1 * expected:
        raise ProofError(
            f"the first loss is {loss:.3f}, an untrained model's is ln({vocab_size}) = {expected:.3f}",
            "the first weights or the targets are wrong: check model settings and these rows: " + str(rows[:3]),
        )
    return f"{loss:.3f} nats, ln(V) = {expected:.3f}"


def _packed(model: Decoder, objective: Objective, batch: Batch) -> str:
    with torch.no_grad():
        together = float(objective.batch_loss(model, batch)[0])
        apart = [float(objective.batch_loss(model, one)[0]) for one in _segments(batch)]
    off = abs(together - sum(apart)) / max(1e-12, abs(together))
    if off > 1e-6:
        raise ProofError(f"packed loss {together:.6f} is not the sum of its rows {sum(apart):.6f}", "attention leaks")
    return f"{len(apart)} rows, relative difference {off:.1e}"


def _accumulated(model: Decoder, objective: Objective, batch: Batch) -> str:
    big = _gradients(model, objective, [batch])
    parts = _gradients(model, objective, list(_segments(batch)))
    worst, name = max((float((big[k] - parts[k]).norm() / (big[k].norm() + 1e-12)), k) for k in big)
    if worst > 1e-6:
        raise ProofError(f"{name}: the accumulated gradient differs by {worst:.1e} from the whole batch's", "report it")
    return f"worst tensor {name}: {worst:.1e}"


def _reaches_all(model: Decoder, objective: Objective, batch: Batch) -> str:
    grads = _gradients(model, objective, [batch])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (name not in grads or not torch.isfinite(grads[name]).all()):
            raise ProofError(f"{name} gets no finite gradient", "it would never be trained: check the model's settings")
    dead = [name for name, g in grads.items() if not g.any()]
    # with a zero-initialised output a tensor behind it has gradient zero at the first step only: move it and look again
    if dead:
        moved = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in moved.parameters():
                p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.02)
        dead = [name for name, g in _gradients(moved, objective, [batch]).items() if not g.any()]
    if dead:
        raise ProofError(f"{dead[0]} gets a gradient of zero", "it would never be trained: check the model's settings")
    return f"{len(grads)} tensors"


def _finite_differences(model: Decoder, objective: Objective, batch: Batch, seed: int) -> str:
    """Central differences along one random direction a tensor, in float64."""
    generator = torch.Generator().manual_seed(seed)
    moved = copy.deepcopy(model)
    with torch.no_grad():  # off the special point that zero-initialised tensors are
        for p in moved.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.02)
    grads = _gradients(moved, objective, [batch])
    named = [(n, p) for n, p in moved.named_parameters() if p.requires_grad]
    stride = max(1, len(named) // PROBED_TENSORS)
    worst, worst_name = 0.0, ""
    for name, parameter in named[::stride]:
        direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        direction /= direction.norm()
        told = float((grads[name] * direction).sum())
        seen = _slope(moved, objective, batch, parameter, direction)
        scale = max(abs(told), abs(seen), 1e-3 * float(grads[name].norm()))
        off = abs(told - seen) / max(scale, 1e-12)
        if off > worst:
            worst, worst_name = off, name
    if worst > 1e-3:
        raise ProofError(f"{worst_name}: the gradient differs by {worst:.1e} from finite differences", "report it")
    return f"{len(named[::stride])} tensors, worst {worst_name}: {worst:.1e}"


def _slope(
    model: Decoder, objective: Objective, batch: Batch, parameter: torch.Tensor, direction: torch.Tensor
) -> float:
    step = 1e-4
    count = max(1, int((batch.targets >= 0).sum()))
    losses = []
    with torch.no_grad():
        for sign in (+1, -2):
            parameter.add_(direction, alpha=sign * step)
            losses.append(float(objective.batch_loss(model, batch)[0]) / count)
        parameter.add_(direction, alpha=step)
    return (losses[0] - losses[1]) / (2 * step)


def _gradients(model: Decoder, objective: Objective, batches: list[Batch]) -> dict[str, torch.Tensor]:
    """Gradient of the mean loss over all `batches`, accumulated batch by batch."""
    model.zero_grad(set_to_none=True)
    count = sum(int((b.targets >= 0).sum()) for b in batches)
    for batch in batches:
        total, _ = objective.batch_loss(model, batch)
        (total / max(1, count)).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
