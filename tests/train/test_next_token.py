"""The chunked loss equals the plain one."""

import pytest
import torch

from settle.train.objectives.next_token import LinearCrossEntropy, TokenLosses


def test_chunked_equals_plain() -> None:
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 16, generator=random, requires_grad=True)
    head = torch.randn(50, 16, generator=random, requires_grad=True)
    targets = torch.randint(0, 50, (37,), generator=random)
    plain = torch.nn.functional.cross_entropy(hidden @ head.T, targets, reduction="sum")
    expected = torch.autograd.grad(plain * 0.3, (hidden, head))
    for logits in (1, 50, 500, 10_000):
        loss = LinearCrossEntropy.apply(hidden, head.detach(), head, targets, logits)
        torch.testing.assert_close(loss, plain)
        torch.testing.assert_close(torch.autograd.grad(loss * 0.3, (hidden, head)), expected)


@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_losses_of_tokens_equal_plain_over_several_products(soft_cap: float | None) -> None:
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(600, 16, generator=random, requires_grad=True)
    head = torch.randn(50, 16, generator=random)
    targets = torch.randint(0, 50, (600,), generator=random)
    logits = hidden @ head.T
    logits = logits if soft_cap is None else torch.tanh(logits / soft_cap) * soft_cap
    plain = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    weights = torch.rand(600, generator=random)
    (expected,) = torch.autograd.grad((plain * weights).sum(), hidden, retain_graph=True)
    (summed,) = torch.autograd.grad(plain.sum(), hidden)
    for chunk in (50, 500, 100_000):
        losses = TokenLosses.apply(hidden, head, targets, chunk, soft_cap)
        torch.testing.assert_close(losses, plain)
        torch.testing.assert_close(torch.autograd.grad((losses * weights).sum(), hidden)[0], expected)
        total = LinearCrossEntropy.apply(hidden, head, head, targets, chunk, soft_cap)
        torch.testing.assert_close(total, plain.sum())
        torch.testing.assert_close(torch.autograd.grad(total, hidden)[0], summed)
