"""Preferences: the loss and its gradient against the formula, computed from log-probabilities by hand."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from settle.data.batches import Batch
from settle.model.adapters.lora import LoRA
from settle.model.architectures.llama import Llama
from settle.model.decoder import Decoder
from settle.train.objectives.dpo import DPO
from tests.train.source_rows import packed

LENGTHS, ANSWERS = (9, 12, 7, 15), (4, 5, 3, 6)  # two pairs: the better answer first, and how much is answer


def pairs() -> Batch:
    data = packed(LENGTHS, Llama.TINY.vocab_size, seed=4)
    for length, answer, end in zip(LENGTHS, ANSWERS, data.cu_seqlens[1:], strict=True):
        data.targets[end - length : end - answer] = -1
    return data


def adapted(moved: float = 0.0) -> Decoder:
    model = Llama.TINY.build(seed=1)
    LoRA(rank=3).apply(model, seed=2)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.trainable().values():
            p.add_(torch.randn(p.shape, generator=random), alpha=moved)
    return model


def log_probability(model: Decoder, data: Batch, segment: int) -> Tensor:
    """Of one answer, its row alone through the model."""
    a, b = data.cu_seqlens[segment : segment + 2]
    hidden = model(torch.from_numpy(data.inputs[a:b]), torch.tensor([0, b - a], dtype=torch.int32))
    logits = log_softmax(hidden @ model.head.T, -1)
    targets = torch.from_numpy(data.targets[a:b])
    kept = (targets >= 0).nonzero().squeeze(1)
    return logits[kept, targets[kept]].sum()


@pytest.mark.parametrize("beta", [0.1, 1.5])
def test_loss_and_gradient_are_the_formulas(beta: float) -> None:
    data, model = pairs(), adapted(0.05)
    base = Llama.TINY.build(seed=1)
    with torch.no_grad():
        before = [log_probability(base, data, segment) for segment in range(4)]
    rise = [log_probability(model, data, segment) - before[segment] for segment in range(4)]
    expected = sum(-logsigmoid(beta * (rise[i] - rise[i + 1])) for i in (0, 2))
    assert isinstance(expected, Tensor)
    wanted = torch.autograd.grad(expected, list(model.trainable().values()))
    total, count = DPO(beta=beta).batch_loss(model, data)
    assert count == DPO().count(data) == 2
    assert torch.allclose(total, expected, rtol=1e-5)
    total.backward()
    for (name, parameter), gradient in zip(model.trainable().items(), wanted, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_begins_at_ln_2_exactly(dtype: torch.dtype) -> None:
    model = adapted()
    model.compute_dtype = dtype
    total, count = DPO(beta=2.0).batch_loss(model, pairs())
    assert float(total.detach()) / count == pytest.approx(math.log(2), abs=1e-6)


def test_training_prefers_the_better_answer_and_leaves_the_base() -> None:
    data, model = pairs(), adapted()
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    stepper = torch.optim.AdamW(model.trainable().values(), lr=5e-3)
    for _ in range(80):
        stepper.zero_grad()
        total, _ = DPO(beta=0.5).batch_loss(model, data)
        total.backward()
        stepper.step()
    assert float(total.detach()) / 2 < 0.35
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
