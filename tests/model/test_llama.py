"""Our Llama on every device and in every type, with attention plain and fused, and the sizes that it is made in."""

import pytest
import torch
from torch import Tensor

from settle.model.architectures.llama import Llama
from settle.model.config import Rope
from settle.model.layers.attention import attention, fused_attention
from settle.model.layers.packed_sequences import Packing, RotationTable, Scoring
from settle.train.objectives.next_token import NextToken

LENGTHS = [7, 16, 16, 3, 1, 16]


def packed(lengths: list[int], vocab: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Random inputs, targets (the last of each segment not counted) and bounds."""
    random = torch.Generator().manual_seed(0)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    inputs, targets = torch.randint(0, vocab, (2, sum(lengths)), generator=random)
    targets[bounds[1:].long() - 1] = -1
    return inputs, targets, bounds


def reference(architecture: Llama):
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**architecture.to_hf_config(), attn_implementation="eager"))


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_bf16_is_close_to_fp32() -> None:
    inputs, targets, bounds = packed([16] * 8)
    got = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = Llama.TINY.build(seed=0)
        model.compute_dtype = dtype
        loss, _ = NextToken().loss(model, inputs, targets, bounds)
        loss.backward()
        got[dtype] = (loss.detach(), gradients(model))
    (loss, exact), (loss_half, rough) = got[torch.float32], got[torch.bfloat16]
    torch.testing.assert_close(loss_half, loss, rtol=5e-3, atol=0)
    for name, gradient in exact.items():
        assert (rough[name] - gradient).norm() < 0.05 * gradient.norm(), name


def test_fused_attention_equals_plain() -> None:
    table = RotationTable(8, 4, 2, Rope(1e4), torch.device("cpu"), torch.float64)
    for lengths in (LENGTHS, [8, 8, 8]):
        packing = Packing(torch.tensor([0, *lengths]).cumsum(0).int())
        random = torch.Generator().manual_seed(0)
        qkv = torch.randn(sum(lengths), 64, generator=random, dtype=torch.float64, requires_grad=True)
        out = torch.randn(sum(lengths), 32, generator=random, dtype=torch.float64)
        results = []
        for y in (attention(qkv, packing, table, Scoring()), fused_attention(qkv, packing, table)):
            results.append((y, torch.autograd.grad(y, qkv, out)[0]))
        torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_accelerator_equals_cpu(device: str) -> None:
    if not getattr(torch, device if device == "cuda" else "mps").is_available():
        pytest.skip(f"this machine has no {device}")
    inputs, targets, bounds = packed(LENGTHS)
    on_cpu, on_device = Llama.TINY.build(seed=0), Llama.TINY.build(seed=0, device=device)
    loss, _ = NextToken().loss(on_cpu, inputs, targets, bounds)
    there, _ = NextToken().loss(on_device, inputs.to(device), targets.to(device), bounds.to(device))
    loss.backward()
    there.backward()
    torch.testing.assert_close(there.cpu(), loss, atol=1e-3, rtol=1e-4)
    for name, gradient in gradients(on_device).items():
        torch.testing.assert_close(gradient.cpu(), dict(on_cpu.named_parameters())[name].grad, atol=1e-3, rtol=1e-3)


def test_a_changed_weight_is_seen() -> None:
    model = Llama.TINY.build(seed=0)
    inputs, _, bounds = packed([8])
    before = model(inputs, bounds).detach().clone()
    for p in model.parameters():
        with torch.no_grad():
            p.mul_(1.01)
        after = model(inputs, bounds).detach().clone()
        if p is not model.head:
            assert not torch.equal(before, after)
        before = after


@pytest.mark.parametrize("asked", [300_000, 2_000_000, 15_000_000, 100_000_000])
def test_sized_comes_near(asked: int) -> None:
    made = Llama.sized(asked, vocab_size=1024, context=128)
    assert 0.6 < made.num_parameters / asked < 1.6
