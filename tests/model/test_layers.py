"""Every option of a layer: gradients by finite differences, rows alone as packed. Families test what they mean."""

import pytest
import torch
from torch import Tensor

from settle.model.config import DecoderOptions, Experts, LayerOptions, Rope
from settle.model.decoder import Decoder
from settle.train.objectives.next_token import NextToken

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


def packed(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    inputs, targets = torch.randint(0, 32, (2, sum(lengths)), generator=random)
    return inputs, targets, torch.tensor([0, *lengths]).cumsum(0).int()


@pytest.mark.parametrize("asked", OPTIONS.values(), ids=OPTIONS.keys())
def test_gradients_by_finite_differences(asked: dict) -> None:
    model = decoder(asked)
    inputs, targets, bounds = packed(LENGTHS)

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
    inputs, _, bounds = packed(LENGTHS)
    together = model(inputs, bounds)
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        alone = model(inputs[start:stop], torch.tensor([0, stop - start], dtype=torch.int32))
        torch.testing.assert_close(together[start:stop], alone)


def test_a_skeleton_on_meta_takes_no_memory() -> None:
    from settle.model.architectures.llama import Llama

    model = Llama.TINY.skeleton()
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert [(n, p.shape) for n, p in model.named_parameters()] == [
        (n, p.shape) for n, p in Llama.TINY.build(0).named_parameters()
    ]
