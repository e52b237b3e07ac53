"""Every option of a layer: gradients by finite differences, rows alone as packed. Families test what they mean."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from settle.model.adapters import Adapter
from settle.model.adapters.dora import DoRA
from settle.model.adapters.lora import LoRA
from settle.model.config import DecoderOptions, Experts, LayerOptions, Rope
from settle.model.decoder import Decoder
from settle.model.layers.decoder_layer import DecoderLayer, FusedLayer
from settle.model.layers.frozen_weights import FrozenDense
from settle.model.layers.linear import Linear, Stack
from settle.model.layers.packed_sequences import Carried, Packing
from settle.train.objectives.next_token import NextToken
from tests.model.test_llama import packed

BASE = {"width": 24, "inner": 20, "heads": 4, "kv_heads": 2, "head_dim": 8, "eps": 1e-5}
OPTIONS = {
    "biases": {"qkv_bias": True, "out_bias": True, "mlp_bias": True},
    "head norms": {"head_norms": True, "norm_offset": 1.0},
    "sandwich": {"sandwich_norms": True, "norm_offset": 1.0, "activation": "gelu_tanh", "soft_cap": 2.0, "window": 3},
    "partial rotary": {"rope": Rope(100.0, rotary_dim=4, attention_factor=1.3), "query_scale": 0.7},
    "given frequencies": {
        "rope": Rope(frequencies=(1.0, 0.3, 0.1, 0.01), long_frequencies=(0.5, 0.2, 0.1, 0.0), long_after=8)
    },
    "fused": {"fused": True, "qkv_bias": True, "mlp_bias": True},
    "clamped": {"activation": "clamped_swiglu", "mlp_bias": True},
    "sinks": {"sinks": True, "window": 4},
    "experts": {"experts": Experts(num=5, top=2, inner=12)},
    "all at once": {
        "qkv_bias": True, "head_norms": True, "sandwich_norms": True, "norm_offset": 1.0, "fused": True,
        "experts": Experts(num=4, top=2, inner=12, normalised=False), "window": 4, "rope": Rope(rotary_dim=6),
    },
}  # fmt: skip
LENGTHS = [5, 9, 5, 1]


def decoder(asked: dict, dtype: torch.dtype = torch.float64) -> Decoder:
    """Two layers, the second a plain one, every weight random."""
    layers = (LayerOptions(**BASE, **asked), LayerOptions(**BASE, norm_offset=asked.get("norm_offset", 0.0)))
    model = Decoder(DecoderOptions(32, layers, tied=True, embedding_scale=3.0, logit_soft_cap=4.0)).to(dtype)
    random = torch.Generator().manual_seed(1)
    model.initialise(random)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=random).to(dtype), alpha=0.2)
    model.compute_dtype = dtype
    return model


@pytest.mark.parametrize("asked", OPTIONS.values(), ids=OPTIONS.keys())
def test_gradients_by_finite_differences(asked: dict) -> None:
    model = decoder(asked)
    inputs, targets, bounds = packed(LENGTHS, 32)

    def loss() -> Tensor:
        return NextToken(chunk_logits=200).loss(model, inputs, targets, bounds)[0]

    loss().backward()
    for name, p in model.named_parameters():
        index = p.grad.abs().flatten().argmax()
        with torch.no_grad():
            p.view(-1)[index] += 1e-5
            above = loss()
            p.view(-1)[index] -= 2e-5
            below = loss()
            p.view(-1)[index] += 1e-5
        torch.testing.assert_close((above - below) / 2e-5, p.grad.view(-1)[index], atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("asked", OPTIONS.values(), ids=OPTIONS.keys())
def test_packed_equals_alone(asked: dict) -> None:
    model = decoder(asked)
    inputs, _, bounds = packed(LENGTHS, 32)
    together = model(inputs, bounds)
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        alone = model(inputs[start:stop], torch.tensor([0, stop - start], dtype=torch.int32))
        torch.testing.assert_close(together[start:stop], alone)


@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_clamped_gate_passes_nothing_back_beyond_its_limits(is_frozen: bool) -> None:
    """As gpt-oss defines it, with the gradient of torch's clamp."""
    down = Linear(6, 3)
    weight = torch.linspace(-1, 1, 18, dtype=torch.float64).view(3, 6)
    down.put(FrozenDense(weight) if is_frozen else weight)
    down = down.double()
    random = torch.Generator().manual_seed(0)
    gate_up = torch.randn(50, 12, generator=random, dtype=torch.float64).mul_(8).requires_grad_()
    gate, up = gate_up.chunk(2, -1)
    gate, up = gate.clamp(max=7), up.clamp(-7, 7)
    wanted = (gate * torch.sigmoid(1.702 * gate) * (up + 1)) @ weight.t()
    direction = torch.randn(50, 3, generator=random, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(wanted, gate_up, direction)
    found = Stack([(down, 0)]).gated(None, gate_up * 1, "clamped_swiglu")
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, gate_up, direction)[0], gradient)
    assert 0.1 < float((gradient == 0).double().mean()) < 0.5


def test_a_skeleton_on_meta_takes_no_memory() -> None:
    from settle.model.architectures.llama import Llama

    model = Llama.TINY.skeleton()
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert [(n, p.shape) for n, p in model.named_parameters()] == [
        (n, p.shape) for n, p in Llama.TINY.build(0).named_parameters()
    ]


def results(model: Decoder, forward: Callable[..., Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """What a way through the first layer returns, and its gradients of the input and of every weight."""
    model.compute_dtype = dtype
    model.zero_grad(set_to_none=True)
    layer, packing = model.layers[0], Packing(packed(LENGTHS, 32)[2])
    random = torch.Generator().manual_seed(2)
    x = torch.randn(sum(LENGTHS), BASE["width"], generator=random).to(dtype).requires_grad_()
    direction = torch.randn(x.shape, generator=random).to(dtype)
    out = forward(layer, x, packing, model.table(0, x.device), 0, Carried())
    out.backward(direction)
    grads = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return {"out": out.detach().float(), "x": x.grad.float(), **grads}


@pytest.mark.parametrize("adapter", [None, LoRA(rank=2), DoRA(rank=2)], ids=["trained", "lora", "dora"])
@pytest.mark.parametrize("asked", OPTIONS.values(), ids=OPTIONS.keys())
def test_the_fused_layer_computes_its_definition(asked: dict, adapter: Adapter | None) -> None:
    """In float32 but for rounding; in bfloat16 it rounds no more than its definition does."""
    model = decoder(asked, torch.float32)
    if adapter is not None:
        adapter.apply(model, seed=0)
        random = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in model.trainable().values():
                p.add_(torch.randn(p.shape, generator=random), alpha=0.1)
    exact, fused, rounded, fused_rounded = (
        results(model, forward, dtype)
        for dtype in (torch.float32, torch.bfloat16)
        for forward in (DecoderLayer.forward, FusedLayer.forward)
    )
    assert exact.keys() == fused.keys() and len(exact) > 2
    assert off(fused, exact).max() < 1e-5
    assert off(fused_rounded, exact).median() < 1.5 * off(rounded, exact).median() < 0.1


def off(found: dict[str, Tensor], exact: dict[str, Tensor]) -> Tensor:
    """The error of each tensor, as a share of its length."""
    norm = torch.linalg.vector_norm
    return torch.stack([norm(found[name] - values) / norm(values) for name, values in exact.items()])
