"""Distillation: divergences and gradients against the formulas, teachers, and the student's own words."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from settle.train.objectives._divergence import Dense, LinearDivergence, Measure, Sparse

N, WIDTH, WIDER, V = 37, 16, 24, 300


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def plain(log_p: Tensor, log_q: Tensor, kind: str, mixture: float) -> Tensor:
    """Sum over positions of the divergence, by its definition."""
    p, q = log_p.exp(), log_q.exp()
    if kind == "forward":
        return (p * (log_p - log_q)).sum()
    if kind == "reverse":
        return (q * (log_q - log_p)).sum()
    log_m = (mixture * p + (1 - mixture) * q).log()
    return mixture * (p * (log_p - log_m)).sum() + (1 - mixture) * (q * (log_q - log_m)).sum()


def capped(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else torch.tanh(logits / cap) * cap


@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
@pytest.mark.parametrize(
    ("temperature", "mixture", "text", "cap"), [(1.0, 0.5, 0.0, None), (2.0, 0.2, 0.3, None), (0.7, 0.9, 0.5, 3.0)]
)
def test_chunked_equals_plain(kind: str, temperature: float, mixture: float, text: float, cap: float | None) -> None:
    hidden, head = numbers(N, WIDTH).requires_grad_(), numbers(V, WIDTH, seed=1).requires_grad_()
    theirs, table = numbers(N, WIDER, seed=2), numbers(V, WIDER, seed=3, scale=0.5)
    targets = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(4))
    logits = capped(hidden @ head.T, cap)
    log_p = log_softmax(capped(theirs @ table.T, 5.0) / temperature, -1)
    apart = plain(log_p, log_softmax(logits / temperature, -1), kind, mixture) * temperature**2
    expected = (1 - text) * apart + text * torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    wanted = torch.autograd.grad(expected * 0.3, (hidden, head))
    measure, teaching = Measure(kind, temperature, mixture, text), Dense(theirs, table, 5.0)  # type: ignore[arg-type]
    for logits_at_once in (1, V, 5 * V, 1 << 20):
        loss = LinearDivergence.apply(hidden, head.detach(), head, targets, teaching, measure, logits_at_once, cap)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss * 0.3, (hidden, head)), wanted)


def test_many_rows_of_a_large_vocabulary_in_half_precision() -> None:
    """Several products, each cut in pieces, in bfloat16: near the exact sum, and no row is left out."""
    rows, vocab = 600, 20_000
    hidden, head = numbers(rows, WIDTH).requires_grad_(), numbers(vocab, WIDTH, seed=1)
    theirs = numbers(rows, WIDER, seed=2)
    table = numbers(vocab, WIDER, seed=3)
    targets = torch.zeros(rows, dtype=torch.int64)
    expected = plain(log_softmax(theirs @ table.T, -1), log_softmax(hidden @ head.T, -1), "forward", 0.5)
    (wanted,) = torch.autograd.grad(expected, hidden)
    half = [t.detach().bfloat16() for t in (hidden, head, theirs, table)]
    half[0].requires_grad_()
    loss = LinearDivergence.apply(half[0], half[1], half[1], targets, Dense(half[2], half[3]), Measure(), 1 << 17)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=0.02)
    (got,) = torch.autograd.grad(loss, half[0])
    assert float((got - wanted).norm() / wanted.norm()) < 0.05


def sparse(log_p: Tensor, top: int, drawn: int, seed: int = 0) -> Sparse:
    order = log_p.argsort(-1, descending=True)
    ids, others = order[:, :top], order[:, top:]
    tail = log_p.gather(1, others)
    random = torch.Generator().manual_seed(seed)
    chosen = others.gather(1, torch.multinomial(tail.exp(), drawn, True, generator=random))
    return Sparse(ids, log_p.gather(1, ids), chosen, log_p.gather(1, chosen), tail.logsumexp(-1))


def test_a_record_says_what_the_teacher_says() -> None:
    """With many draws the forward divergence and its gradient are the whole ones; with few, not biased."""
    hidden, head = numbers(6, WIDTH).requires_grad_(), numbers(V, WIDTH, seed=1)
    log_p = log_softmax(numbers(6, V, seed=2, scale=1.5), -1)
    targets = torch.zeros(6, dtype=torch.int64)
    whole = plain(log_p, log_softmax(hidden @ head.T, -1), "forward", 0.5)
    (wanted,) = torch.autograd.grad(whole, hidden)
    expected = float(whole.detach())

    def taught(record: Sparse) -> tuple[float, Tensor]:
        loss = LinearDivergence.apply(hidden, head, head, targets, record, Measure(), 1 << 20)
        return float(loss.detach()), torch.autograd.grad(loss, hidden)[0]

    many, gradient = taught(sparse(log_p, 8, 100_000))
    assert many == pytest.approx(expected, rel=5e-3)
    assert float((gradient - wanted).norm() / wanted.norm()) < 0.01
    few = [taught(sparse(log_p, 8, 4, seed)) for seed in range(400)]
    assert np.mean([loss for loss, _ in few]) == pytest.approx(expected, rel=0.02)
    mean = torch.stack([gradient for _, gradient in few]).mean(0)
    assert float((mean - wanted).norm() / wanted.norm()) < 0.06


@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
@pytest.mark.parametrize("drawn", [0, 4])
def test_gradients_of_a_record_are_those_of_its_loss(kind: str, drawn: int) -> None:
    hidden, head = numbers(5, WIDTH).requires_grad_(), numbers(40, WIDTH, seed=1)
    log_p = log_softmax(numbers(5, 40, seed=2, scale=1.5), -1)
    record = sparse(log_p, 7, 4)
    if not drawn:
        ids = torch.arange(40).expand(5, 40)
        record = Sparse(ids, log_p, ids[:, :0], log_p[:, :0], torch.full((5,), -80.0))
    targets = torch.zeros(5, dtype=torch.int64)

    def loss(hidden: Tensor) -> Tensor:
        out: Tensor = LinearDivergence.apply(hidden, head, head, targets, record, Measure(kind), 1 << 20)  # type: ignore[arg-type]
        return out

    assert torch.autograd.gradcheck(loss, (hidden,))
    whole = plain(log_p, log_softmax(hidden @ head.T, -1), kind, 0.5)
    if not drawn:
        torch.testing.assert_close(loss(hidden), whole)
    elif kind != "forward":
        assert 0 < float(loss(hidden).detach()) < float(whole.detach())
