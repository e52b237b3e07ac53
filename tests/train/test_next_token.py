"""The chunked loss equals the plain one."""

import torch

from settle.train.objectives.next_token import LinearCrossEntropy


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
