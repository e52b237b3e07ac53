"""Blocks of few bits against llama.cpp's own Python reader, and NF4 against its paper."""

import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize as reference

from settle.base.errors import FormatError
from settle.formats.gguf.types import GGML
from settle.model.layers.dequantize import dequantize, dequantize_nf4, quantize_nf4


def _blocks(kind: str, number: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (number, GGML[kind].block_bytes), dtype=np.uint8)


@pytest.mark.parametrize("kind", GGML)
def test_every_bit_pattern_means_the_same(kind):
    """More blocks than fit into one piece, of random bytes: scales that are NaN or infinite too."""
    row = GGML[kind]
    assert GGML_QUANT_SIZES[GGMLQuantizationType[kind]] == (row.block, row.block_bytes)
    assert GGMLQuantizationType[kind] == row.id
    rows = 1100 if row.block > 32 else 8800
    blocks = _blocks(kind, rows)
    shape = (rows // 100, 100 * row.block)
    assert row.num_bytes(shape) == blocks.size
    with np.errstate(invalid="ignore", over="ignore"):
        expected = reference(blocks, GGMLQuantizationType[kind]).reshape(shape)
    ours = dequantize(torch.from_numpy(blocks), kind, shape)
    np.testing.assert_array_equal(ours.numpy(), expected)
    rounded = torch.empty(shape, dtype=torch.bfloat16)
    assert dequantize(torch.from_numpy(blocks), kind, shape, torch.bfloat16, rounded) is rounded
    torch.testing.assert_close(rounded, torch.tensor(expected).bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_an_unknown_type_and_a_wrong_number_of_bytes():
    with pytest.raises(FormatError, match="TQ2_0 is not read here.*Q4_K"):
        dequantize(torch.zeros(66, dtype=torch.uint8), "TQ2_0", (256,))
    with pytest.raises(FormatError, match="18 bytes of Q4_0 are no tensor of the shape"):
        dequantize(torch.zeros(18, dtype=torch.uint8), "Q4_0", (2, 32))


def test_nf4_keeps_what_it_can_hold():
    """Blocks made of the levels themselves, with equal scales, come back as they were; zeros stay zeros."""
    levels = dequantize_nf4(quantize_nf4(torch.linspace(-1, 1, 64))).unique()
    assert len(levels) == 16 and levels.min() == -1 and levels.max() == 1 and 0 in levels
    weight = (levels.repeat(4 * 300) * 0.03).view(300, 64)
    torch.testing.assert_close(dequantize_nf4(quantize_nf4(weight)), weight, rtol=1e-6, atol=0)
    assert not dequantize_nf4(quantize_nf4(torch.zeros(2, 64))).any()


def test_nf4_double_quantized_is_as_good_as_single():
    weight = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0)) * 0.02
    weight[7] *= 20  # a row of outliers shares second-level blocks with its neighbours
    packed = quantize_nf4(weight)
    assert packed.num_bytes * 8 / weight.numel() < 4.13
    back = dequantize_nf4(packed)
    blocks = weight.view(-1, 64)
    scales = blocks.abs().amax(1, keepdim=True)
    levels = dequantize_nf4(quantize_nf4(torch.linspace(-1, 1, 64))).unique()
    single = levels[(blocks / scales).unsqueeze(-1).sub(levels).abs().argmin(-1)] * scales
    error, best = (back - weight).square().mean(), (single.view_as(weight) - weight).square().mean()
    assert error < 1.02 * best
    torch.testing.assert_close(dequantize_nf4(packed, torch.bfloat16), back.bfloat16(), rtol=0, atol=0)


def test_nf4_needs_whole_blocks():
    with pytest.raises(FormatError, match="no whole blocks"):
        quantize_nf4(torch.zeros(100))
