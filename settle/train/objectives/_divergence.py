"""How far a student's next-token distribution lies from a teacher's, and the gradient, without ever holding all logits.

Forward KL(p‖q), reverse KL(q‖p) and the generalised Jensen-Shannon divergence β KL(p‖m) + (1-β) KL(q‖m) with
m = β p + (1-β) q (arXiv:2306.13649), p the teacher's, q the student's, both softmax(logits / τ) and the result times
τ² (arXiv:1503.02531, section 2: gradients keep their size). All in nats.

Letters: N tokens, n of them at once, D hidden width of the student and T of the teacher, V vocabulary, K tokens that a
record names, S tokens it drew from the others.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from settle.data.likelihoods import LEAST
from settle.model.layers.kernels import Context
from settle.train.objectives.next_token import logit_chunks, scaled, summed

Kind = Literal["forward", "reverse", "js"]


class Measure(NamedTuple):
    """What is added up for each token: (1 - text) · divergence + text · -log q(target) at temperature 1.

    mixture: β of the Jensen-Shannon divergence, the teacher's share of m.
    """

    kind: Kind = "forward"
    temperature: float = 1.0
    mixture: float = 0.5
    text: float = 0.0


class TeacherChunk(Protocol):
    """A teacher's distributions of n tokens."""

    def part(self, rows: slice) -> "TeacherChunk":
        """Return the distributions of some of the tokens."""

    def apart(self, log_q: Tensor, measure: Measure) -> tuple[Tensor, Tensor]:
        """Compute the divergence (n,) and its gradient at the scores.

        log_q (n, V): log-probabilities of the student, the log-softmax of those scores (n, V).
        """


class TeacherBatch(Protocol):
    """A teacher's distributions of all N tokens of a batch."""

    def at(self, rows: slice) -> TeacherChunk: ...


class LinearDivergence(Function):
    """Sum over tokens of a `Measure` of hidden @ head.T against a teacher, its gradient computed on the way.

    hidden (N, D), `cast` (V, D) the head in the compute type, `head` (V, D) its owner, targets (N,) → scalar fp32.
    soft_cap: of the student's logits. `chunk_logits` numbers are held in fp32 at once, a few times over.
    """

    @staticmethod
    def forward(
        ctx: Context,
        hidden: Tensor,
        cast: Tensor,
        head: Tensor,
        targets: Tensor,
        teacher: TeacherBatch,
        measure: Measure,
        chunk_logits: int,
        soft_cap: float | None = None,
    ) -> Tensor:
        chunks = _chunks(hidden, cast, targets, teacher, measure, chunk_logits, soft_cap)
        return summed(ctx, hidden, cast, head, chunks)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_head = scaled(ctx, grads[0])
        return grad_hidden, None, grad_head, None, None, None, None, None


def _chunks(
    hidden: Tensor,
    cast: Tensor,
    targets: Tensor,
    teacher: TeacherBatch,
    measure: Measure,
    chunk_logits: int,
    soft_cap: float | None,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows, losses of them (n,) fp32 and the losses' gradient at the logits (n, V), overwritten by the next."""
    for rows, logits, size in logit_chunks(hidden, cast, chunk_logits):
        chunk, losses = teacher.at(rows), []
        for first in range(0, len(logits), size):
            piece = slice(first, min(first + size, len(logits)))
            losses.append(_into_errors(logits[piece], chunk.part(piece), targets[rows][piece], measure, soft_cap))
        yield rows, torch.cat(losses), logits


def _into_errors(
    logits: Tensor, chunk: TeacherChunk, targets: Tensor, measure: Measure, soft_cap: float | None
) -> Tensor:
    """Losses (n,) of logits (n, V), which become the losses' gradients in place."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    scores = logits.to(wide)
    bent = None
    if soft_cap is not None:
        bent = torch.tanh(scores / soft_cap)
        scores = bent * soft_cap
    heat = measure.temperature
    losses, errors = chunk.apart(torch.log_softmax(scores / heat, -1), measure)
    losses, errors = losses * heat**2, errors.mul_(heat)  # τ² times the gradient's own 1/τ
    if measure.text:
        log_q = torch.log_softmax(scores, -1)
        target = targets.unsqueeze(1)
        losses = (1 - measure.text) * losses - measure.text * log_q.gather(1, target).squeeze(1)
        errors.mul_(1 - measure.text).add_(log_q.exp_(), alpha=measure.text)
        errors.scatter_add_(1, target, errors.new_full(target.shape, -measure.text))
    if bent is not None:
        errors.mul_(1 - bent.square_())
    logits.copy_(errors)
    return losses


@dataclass(frozen=True)
class Dense:
    """A live teacher: hidden (N, T) behind its final norm, cast (V, T) its head, and its soft cap."""

    hidden: Tensor
    cast: Tensor
    soft_cap: float | None = None

    def at(self, rows: slice) -> "DenseChunk":
        return DenseChunk(self.hidden[rows] @ self.cast.t(), self.soft_cap)


@dataclass(frozen=True)
class Mean:
    """Several live teachers, whose probabilities are averaged."""

    teachers: tuple[Dense, ...]

    def at(self, rows: slice) -> "DenseChunk":
        chunks = [teacher.at(rows) for teacher in self.teachers]
        wide = chunks[0].logits.new_empty(0, dtype=torch.promote_types(chunks[0].logits.dtype, torch.float32))
        known = torch.stack([chunk.log_probabilities(wide, 1.0) for chunk in chunks])
        return DenseChunk(known.logsumexp(0))  # scores, as logarithms of probabilities up to a constant are


@dataclass(frozen=True)
class DenseChunk:
    """logits (n, V) in the type that the teacher computes in."""

    logits: Tensor
    soft_cap: float | None = None

    def part(self, rows: slice) -> "DenseChunk":
        return DenseChunk(self.logits[rows], self.soft_cap)

    def log_probabilities(self, like: Tensor, temperature: float) -> Tensor:
        """(n, V) in the type of `like`."""
        scores = self.logits.to(like.dtype)
        if self.soft_cap is not None:
            scores = torch.tanh(scores / self.soft_cap) * self.soft_cap
        return torch.log_softmax(scores / temperature, -1)

    def apart(self, log_q: Tensor, measure: Measure) -> tuple[Tensor, Tensor]:
        log_p, q = self.log_probabilities(log_q, measure.temperature), log_q.exp()
        p = log_p.exp()
        if measure.kind == "forward":
            return _gap(p, log_p, q, log_q), q.sub_(p)
        if measure.kind == "reverse":
            return _gap(q, log_q, p, log_p), _through_softmax(q, log_q - log_p)
        log_m = torch.logaddexp(log_p + math.log(measure.mixture), log_q + math.log1p(-measure.mixture))
        m = log_m.exp()
        far, near = _gap(p, log_p, m, log_m), _gap(q, log_q, m, log_m)
        slope = (1 - measure.mixture) * (log_q - log_m)
        return measure.mixture * far + (1 - measure.mixture) * near, _through_softmax(q, slope)


def _gap(p: Tensor, log_p: Tensor, q: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) (n,) as the sum of q - p - p·log(q/p), in which nothing large cancels: exact also where p is nearly q."""
    ratio = log_q - log_p
    return torch.where(ratio < 1, p * (torch.expm1(ratio) - ratio), q - p - p * ratio).sum(-1)


def _through_softmax(q: Tensor, slope: Tensor) -> Tensor:
    """Return the gradient at the scores (n, V) where the slope along q is `slope` up to a constant. Overwrites q."""
    return q.mul_(slope - (q * slope).sum(-1, keepdim=True))


@dataclass(frozen=True)
class Sparse:
    """What a record keeps of a teacher.

    ids (N, K) of the likeliest tokens and their log-probabilities, `drawn` (N, S) ids drawn from all others in
    proportion to their probability and theirs, and `rest` (N,), the log of the others' mass. S is 0 where K is the
    whole vocabulary.
    """

    ids: Tensor
    logprobs: Tensor
    drawn: Tensor
    drawn_logprobs: Tensor
    rest: Tensor

    def at(self, rows: slice) -> "Sparse":
        return Sparse(*(getattr(self, field.name)[rows] for field in fields(self)))

    part = at

    def apart(self, log_q: Tensor, measure: Measure) -> tuple[Tensor, Tensor]:
        """Compute forward KL without bias: the drawn tokens represent all the rest.

        The other divergences are those of the K tokens and one more that is "any other": never more than the whole
        ones.
        """
        assert measure.temperature == 1.0, "a record is of the distribution as it is"
        log_p, rest = self.logprobs.to(log_q.dtype), self.rest.to(log_q.dtype).unsqueeze(1)
        if measure.kind != "forward":
            return self._coarse(log_q, log_p, rest, measure)
        p = log_p.exp()
        losses = (p * (log_p - log_q.gather(1, self.ids))).sum(-1)
        mass = p.sum(-1, keepdim=True)
        errors = log_q.exp()
        if self.drawn.shape[1]:
            share = (rest.exp() / self.drawn.shape[1]).expand(self.drawn.shape)
            drawn = self.drawn_logprobs.to(log_q.dtype) - log_q.gather(1, self.drawn)
            losses, mass = losses + (share * drawn).sum(-1), mass + rest.exp()
        errors.mul_(mass).scatter_add_(1, self.ids, -p)  # logarithms are rounded in a record: the mass is nearly one
        return losses, errors.scatter_add_(1, self.drawn, -share) if self.drawn.shape[1] else errors

    def _coarse(self, log_q: Tensor, log_p: Tensor, rest: Tensor, measure: Measure) -> tuple[Tensor, Tensor]:
        known = log_q.gather(1, self.ids)
        others = log_q.scatter(1, self.ids, -math.inf).logsumexp(-1, keepdim=True)
        log_p, coarse = torch.cat([log_p, rest], 1), torch.cat([known, others], 1).clamp_min_(LEAST)
        if measure.kind == "reverse":
            slope, far = coarse - log_p, torch.zeros_like(rest[:, 0])
        else:
            log_m = torch.logaddexp(log_p + math.log(measure.mixture), coarse + math.log1p(-measure.mixture))
            slope = (1 - measure.mixture) * (coarse - log_m)
            far = measure.mixture * (log_p.exp() * (log_p - log_m)).sum(-1)
        near = (coarse.exp() * slope).sum(-1)
        slopes = slope[:, -1:].expand(log_q.shape).scatter(1, self.ids, slope[:, :-1])
        return far + near, log_q.exp().mul_(slopes - near.unsqueeze(1))
