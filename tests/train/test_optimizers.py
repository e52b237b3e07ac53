"""Optimizers: the orthogonal step, exact state, and that both learn."""

import pytest
import torch

from settle.base.registry import parts
from settle.model.adapters.dora import DoRA
from settle.model.adapters.lora import LoRA
from settle.model.architectures.llama import Llama
from settle.model.architectures.qwen3_moe import Qwen3Moe
from settle.train.objectives.next_token import NextToken
from settle.train.optimizers.muon import orthogonal
from tests.model.test_llama import packed

OPTIMIZERS = sorted(parts("train/optimizers").items())


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_matrix_of_rank_one_is_made_orthogonal_too(size: float) -> None:
    """All of its length is one singular value, which the iteration must not be begun above."""
    random = torch.Generator().manual_seed(0)
    up, across = torch.randn(12, 1, generator=random), torch.randn(1, 20, generator=random)
    found = orthogonal((size * up @ across)[None], 5, torch.float32)[0]
    wanted = up @ across / up.norm() / across.norm()
    assert (found - wanted).norm() < 0.12 and orthogonal(torch.zeros(1, 3, 4), 5, torch.float32).eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 96, 32), (2, 32, 96)])
def test_muon_orthogonalises(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonal(matrices, 5, dtype)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    # the smallest singular values of a square random matrix are near zero and still on their way
    assert (torch.linalg.svdvals(found) - 1).abs().quantile(0.95) < 0.2
    overlap = (found * (u @ v)).sum((-2, -1)) / (found.norm(dim=(-2, -1)) * (u @ v).norm(dim=(-2, -1)))
    assert overlap.min() > 0.97


def train(model, stepper, steps: int) -> list[float]:
    inputs, targets, bounds = packed([16] * 4)
    losses = []
    for _ in range(steps):
        model.zero_grad()
        loss, count = NextToken().loss(model, inputs, targets, bounds)
        (loss / count).backward()
        stepper.step(1.0)
        losses.append(loss.item() / count)
    return losses


@pytest.mark.parametrize(("name", "rule"), OPTIMIZERS)
def test_learns_and_repeats_itself(name: str, rule) -> None:
    runs = []
    for _ in range(2):
        model = Llama.TINY.build(seed=0)
        runs.append((train(model, rule().bind(model), 20), model.state_dict()))
    (first, weights), (second, again) = runs
    assert first == second and all(torch.equal(weights[n], again[n]) for n in weights)
    assert first[-1] < 0.7 * first[0]


@pytest.mark.parametrize(("name", "rule"), OPTIMIZERS)
def test_state_round_trip_is_exact(name: str, rule) -> None:
    model = Llama.TINY.build(seed=0)
    stepper = rule().bind(model)
    train(model, stepper, 3)
    state = {n: t.clone() for n, t in stepper.state().items()}
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    train(model, stepper, 3)

    other = Llama.TINY.build(seed=9)
    other.load_state_dict(weights)
    resumed = rule().bind(other)
    resumed.restore(state)
    train(other, resumed, 3)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    size = sum(t.numel() * t.element_size() for t in state.values())
    assert size <= rule().bytes_per_parameter() * 2 * sum(p.numel() for p in model.parameters()) + 4


@pytest.mark.parametrize("adapter", [LoRA(rank=4, dropout=0.0), DoRA(rank=4, dropout=0.0)], ids=["lora", "dora"])
@pytest.mark.parametrize(("name", "rule"), OPTIMIZERS)
def test_an_adapter_alone_is_trained(name: str, rule, adapter) -> None:
    """Muon has no table and no norm to leave to AdamW there."""
    model = Llama.TINY.build(seed=0)
    adapter.apply(model, seed=1)
    stepper = rule().bind(model)
    losses = train(model, stepper, 12)
    assert losses[-1] < 0.97 * losses[0]
    other = rule().bind(model)
    other.restore(stepper.state())
    assert all(torch.equal(tensor, other.state()[key]) for key, tensor in stepper.state().items())


@pytest.mark.parametrize(("name", "rule"), OPTIMIZERS)
def test_an_expert_that_no_token_chose_is_stepped_too(name: str, rule) -> None:
    model = Qwen3Moe.TINY.build(seed=0)
    inputs, targets, bounds = packed([1])
    NextToken().loss(model, inputs, targets, bounds)[0].backward()
    unseen = [n for n, p in model.trainable().items() if p.grad is None]
    assert unseen and all(".experts." in n for n in unseen)
    rule().bind(model).step(1.0)
    assert all(torch.isfinite(p).all() for p in model.parameters())
