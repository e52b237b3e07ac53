"""Dequantizes weights in blocks of few bits: GGUF's types and NF4.

A ggml type without a function here is dequantized by gguf's own, which is right and slow. Layouts: ggml's
`ggml-common.h` and `ggml-quants.c`; NF4 with double quantization: QLoRA (arXiv:2305.14314). Work goes in pieces that
stay in the processor's cache, so a weight's temporaries are never as large as the weight.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import gguf
import gguf.quants
import numpy as np
import torch
from torch import Tensor

from settle.base.errors import FormatError
from settle.formats.gguf.types import GgmlType, ggml_type

_PIECE = 1 << 17  # values of a piece on a CPU: half a megabyte of fp32
_CARD_PIECE = 1 << 24  # on a card, where every kernel costs the same however little it does
CONSTANTS: dict[tuple[int, torch.device], Tensor] = {}  # this module's, by device
Unpack = Callable[[Tensor, Tensor], None]  # blocks (n, bytes) uint8, out (n, values) fp32 to fill


def dequantize(
    blocks: Tensor, kind: str, shape: Sequence[int], dtype: torch.dtype = torch.float32, out: Tensor | None = None
) -> Tensor:
    """Return the numbers of a tensor that lies in memory as a GGUF file has it.

    blocks: uint8, any shape, contiguous, the tensor's bytes in the file's order. kind: ggml's name of the type ("Q4_K",
    "F16" …). shape: outermost first. out: contiguous, of that shape and dtype, filled instead of a new one. Computed in
    fp32 and rounded once to `dtype`. Raises FormatError for a type that is not known, or for bytes that do not fill the
    shape.
    """
    row = ggml_type(kind)
    if math.prod(shape) % row.block or blocks.numel() != row.num_bytes(shape):
        raise FormatError(f"{blocks.numel()} bytes of {kind} are no tensor of the shape {tuple(shape)}", "")
    if out is None:
        out = torch.empty(tuple(shape), dtype=dtype, device=blocks.device)
    rows = blocks.reshape(-1, row.block_bytes)
    _in_pieces(rows, out.view(-1, row.block), UNPACK.get(row.name) or partial(_by_gguf, row))
    return out


def _by_gguf(row: GgmlType, blocks: Tensor, out: Tensor) -> None:
    with np.errstate(invalid="ignore", over="ignore"):  # a scale may be infinite, as in every other type
        numbers = gguf.quants.dequantize(blocks.cpu().numpy(), gguf.GGMLQuantizationType(row.id))
    out.copy_(torch.from_numpy(numbers))


def _in_pieces(rows: Tensor, filled: Tensor, unpack: Unpack) -> None:
    """Unpack `rows` (n, bytes) into `filled` (n, values) of any float type, some rows at a time."""
    step = max(1, _piece(filled.device) // filled.shape[1])
    exact = filled.dtype == torch.float32
    buffer = None if exact else torch.empty(min(step, len(filled)), filled.shape[1], device=filled.device)
    for first in range(0, len(rows), step):
        piece, target = rows[first : first + step], filled[first : first + step]
        if buffer is None:
            unpack(piece, target)
        else:
            unpack(piece, buffer[: len(piece)])
            target.copy_(buffer[: len(piece)])


def _piece(device: torch.device) -> int:
    """Values that are turned into numbers at once."""
    return _PIECE if device.type == "cpu" else _CARD_PIECE


def _there(constant: Tensor, device: torch.device) -> Tensor:
    """One of this module's constants on a device, brought there once: a copy would wait for the device every time."""
    if device.type == "cpu":
        return constant
    key = id(constant), device
    if key not in CONSTANTS:
        CONSTANTS[key] = constant.to(device)
    return CONSTANTS[key]


def _half(blocks: Tensor, at: int) -> Tensor:
    """Read the fp16 at byte `at` of each block, as fp32 (n, 1)."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _low_high(packed: Tensor, low: Tensor, high: Tensor) -> None:
    """Put the two halves of each byte into two places."""
    low.copy_(packed & 15)
    high.copy_(packed >> 4)


def _float(dtype: torch.dtype, blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks.contiguous().view(dtype))


def _q4_0(blocks: Tensor, out: Tensor) -> None:
    _low_high(blocks[:, 2:], out[:, :16], out[:, 16:])
    out.sub_(8).mul_(_half(blocks, 0))


def _q4_1(blocks: Tensor, out: Tensor) -> None:
    _low_high(blocks[:, 4:], out[:, :16], out[:, 16:])
    out.mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _five_bits(fours: Tensor, ones: Tensor) -> Tensor:
    """Return the 32 numbers of 5 bits of each block, uint8.

    fours (n, 16): low four bits, ones (n, 4): bit j is value j's.
    """
    low = torch.cat([fours & 15, fours >> 4], 1)
    return low | (ones.unsqueeze(2) >> _there(_EIGHT, ones.device) & 1).view(-1, 32) << 4


def _q5_0(blocks: Tensor, out: Tensor) -> None:
    out.copy_(_five_bits(blocks[:, 6:], blocks[:, 2:6]))
    out.sub_(16).mul_(_half(blocks, 0))


def _q5_1(blocks: Tensor, out: Tensor) -> None:
    out.copy_(_five_bits(blocks[:, 8:], blocks[:, 4:8]))
    out.mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q8_0(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks[:, 2:].view(torch.int8))
    out.mul_(_half(blocks, 0))


def _q2_k(blocks: Tensor, out: Tensor) -> None:
    scales, packed = blocks[:, :16], blocks[:, 16:80].view(-1, 2, 1, 32)
    out.view(-1, 2, 4, 32).copy_(packed >> _there(_SHIFTS, blocks.device) & 3)
    grouped = out.view(-1, 16, 16)
    grouped.mul_((_half(blocks, 80) * (scales & 15)).unsqueeze(-1))
    grouped.sub_((_half(blocks, 82) * (scales >> 4)).unsqueeze(-1))


def _q3_k(blocks: Tensor, out: Tensor) -> None:
    packed = blocks[:, 32:96].view(-1, 2, 1, 32)
    twos = (packed >> _there(_SHIFTS, blocks.device) & 3).view(-1, 8, 32)
    ones = blocks[:, :32].view(-1, 1, 32) >> _there(_EIGHT, blocks.device).unsqueeze(1) & 1
    out.view(-1, 8, 32).copy_(twos | ones << 2).sub_(4)
    low, high = blocks[:, 96:104], blocks[:, 104:108]
    fours = torch.cat([low & 15, low >> 4], 1)
    upper = (high.unsqueeze(1) >> _there(_SHIFTS, blocks.device)).view(-1, 16) & 3
    scales = (fours | upper << 4).float().sub_(32)
    out.view(-1, 16, 16).mul_((_half(blocks, 108) * scales).unsqueeze(-1))


def _scales_and_minima(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and minimum of each of the 8 groups of a Q4_K or Q5_K block, (n, 8, 1) each."""
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([first & 63, third & 15 | first >> 6 << 4], 1)
    minima = torch.cat([second & 63, third >> 4 | second >> 6 << 4], 1)
    return (_half(blocks, 0) * scales).unsqueeze(-1), (_half(blocks, 2) * minima).unsqueeze(-1)


def _q4_k(blocks: Tensor, out: Tensor) -> None:
    pairs = out.view(-1, 4, 2, 32)
    _low_high(blocks[:, 16:].view(-1, 4, 32), pairs[:, :, 0], pairs[:, :, 1])
    scales, minima = _scales_and_minima(blocks)
    out.view(-1, 8, 32).mul_(scales).sub_(minima)


def _q5_k(blocks: Tensor, out: Tensor) -> None:
    packed = blocks[:, 48:].view(-1, 4, 32)
    fours = torch.stack([packed & 15, packed >> 4], 2).view(-1, 8, 32)
    ones = blocks[:, 16:48].view(-1, 1, 32) >> _there(_EIGHT, blocks.device).unsqueeze(1) & 1
    scales, minima = _scales_and_minima(blocks)
    out.view(-1, 8, 32).copy_(fours | ones << 4).mul_(scales).sub_(minima)


def _q6_k(blocks: Tensor, out: Tensor) -> None:
    low, high = blocks[:, :128].view(-1, 2, 64), blocks[:, 128:192].view(-1, 2, 1, 32)
    fours = torch.cat([low & 15, low >> 4], 2).view(-1, 2, 4, 32)
    twos = high >> _there(_SHIFTS, blocks.device) & 3
    out.view(-1, 2, 4, 32).copy_(fours | twos << 4)
    scales = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8)
    out.sub_(32).view(-1, 16, 16).mul_(scales.unsqueeze(-1))


def _iq4_nl(blocks: Tensor, out: Tensor) -> None:
    _levels(blocks[:, 2:].view(-1, 1, 16), out)
    out.mul_(_half(blocks, 0))


def _mxfp4(blocks: Tensor, out: Tensor) -> None:
    codes = torch.cat([blocks[:, 1:] & 15, blocks[:, 1:] >> 4], 1).short()
    # sign, two bits of exponent and one of mantissa, where a half has them: it then is 2^-14 of the value
    out.copy_(((codes & 8) << 12 | (codes & 7) << 9).view(torch.float16))
    out.mul_(1 << 15).mul_(_there(_E8M0_HALVES, blocks.device)[blocks[:, :1].int()])


def _iq4_xs(blocks: Tensor, out: Tensor) -> None:
    _levels(blocks[:, 8:].view(-1, 8, 16), out)
    twos = (blocks[:, 2:4].unsqueeze(-1) >> _there(_SHIFTS, blocks.device).view(-1) & 3).view(-1, 8)
    fours = torch.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], 2).view(-1, 8)
    scales = (fours | twos << 4).float().sub_(32)
    out.view(-1, 8, 32).mul_((_half(blocks, 0) * scales).unsqueeze(-1))


def _levels(packed: Tensor, out: Tensor) -> None:
    """Uneven levels from four bits each. packed: (n, groups, 16); out: (n, 32 × groups)."""
    levels = _there(_IQ4_LEVELS, packed.device)
    halves = out.view(-1, packed.shape[1], 2, 16)
    halves[:, :, 0] = levels[(packed & 15).int()]
    halves[:, :, 1] = levels[(packed >> 4).int()]


_IQ4_LEVELS = torch.tensor(
    [-127.0, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
)  # of ggml-common.h, kvalues_iq4nl
# half of OCP's E8M0, as ggml has it: its values are twice those of E2M1, so that both are floats
_E8M0_HALVES = torch.ldexp(torch.ones(256, dtype=torch.float64), torch.arange(256) - 128).float()
_EIGHT = torch.arange(8, dtype=torch.uint8)
_SHIFTS = torch.tensor([[0], [2], [4], [6]], dtype=torch.uint8)

UNPACK: dict[str, Unpack] = {
    "F32": partial(_float, torch.float32), "F16": partial(_float, torch.float16),
    "BF16": partial(_float, torch.bfloat16),
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q2_K": _q2_k, "Q3_K": _q3_k,
    "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl, "MXFP4": _mxfp4, "IQ4_XS": _iq4_xs,
}  # fmt: skip

# Appendix E of the paper: quantiles of the normal distribution, with an exact zero.
_NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_NF4_TABLE = torch.tensor(_NF4_LEVELS)
_NF4_BLOCK, _NF4_SECOND = 64, 256


@dataclass(frozen=True)
class Nf4:
    """A tensor of n numbers in 4.127 bits each.

    codes: uint8 (n/2,), the earlier number in the low half. scales: int8 (n/64,), what each block's largest
    magnitude differs from `mean`, in units of seconds (fp32, (n/64/256,), rounded up). mean: fp32 ().
    """

    codes: Tensor
    scales: Tensor
    seconds: Tensor
    mean: Tensor
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.codes, self.scales, self.seconds, self.mean))


def quantize_nf4(weight: Tensor) -> Nf4:
    """Quantize a float tensor to NF4 with double quantization. Raises FormatError when 64 does not divide its size."""
    if weight.numel() % _NF4_BLOCK:
        raise FormatError(f"a tensor of {weight.numel()} numbers has no whole blocks of {_NF4_BLOCK}", "keep it dense")
    blocks = weight.detach().reshape(-1, _NF4_BLOCK)
    largest = torch.cat([p.float().abs().amax(1) for p in blocks.split(_PIECE // _NF4_BLOCK)])
    mean = largest.mean()
    off = torch.nn.functional.pad(largest - mean, (0, -len(largest) % _NF4_SECOND)).view(-1, _NF4_SECOND)
    seconds = off.abs().amax(1) / 127
    unit = torch.where(seconds > 0, seconds, 1).unsqueeze(1)
    scales = (off / unit).round().to(torch.int8).view(-1)[: len(largest)].contiguous()
    levels = _there(_NF4_TABLE, weight.device)
    between = (levels[1:] + levels[:-1]) / 2
    stored = _nf4_scales(scales, seconds, mean).unsqueeze(1)
    codes = torch.empty(len(blocks), _NF4_BLOCK // 2, dtype=torch.uint8, device=weight.device)
    step = _PIECE // _NF4_BLOCK
    for first in range(0, len(blocks), step):
        # codes are chosen for the scale as it is stored, so the second quantization costs less
        piece = blocks[first : first + step].float() / stored[first : first + step].clamp_min(1e-30)
        index = torch.bucketize(piece, between).to(torch.uint8)
        codes[first : first + step] = index[:, 0::2] | index[:, 1::2] << 4
    return Nf4(codes.view(-1), scales, seconds, mean, tuple(weight.shape))


def dequantize_nf4(packed: Nf4, dtype: torch.dtype = torch.float32, out: Tensor | None = None) -> Tensor:
    """Return the numbers of an NF4 tensor, computed in fp32 and rounded once to `dtype`; out as in `dequantize`."""
    device = packed.codes.device
    if out is None:
        out = torch.empty(packed.shape, dtype=dtype, device=device)
    levels = _there(_NF4_TABLE, device)
    # both numbers of a byte are looked up at once, as one 64-bit entry
    pairs = torch.stack([levels.repeat(16), levels.repeat_interleave(16)], 1).view(torch.int64).view(-1)
    scales = _nf4_scales(packed.scales, packed.seconds, packed.mean).unsqueeze(1)
    filled, codes = out.view(-1, _NF4_BLOCK), packed.codes.view(-1, _NF4_BLOCK // 2)
    step = _piece(device) // _NF4_BLOCK
    for first in range(0, len(filled), step):
        looked_up = pairs[codes[first : first + step].int()].view(torch.float32)
        target = filled[first : first + step]
        target.copy_(looked_up.mul_(scales[first : first + step]))
    return out


def _nf4_scales(scales: Tensor, seconds: Tensor, mean: Tensor) -> Tensor:
    """Return what each block's levels are multiplied by, fp32 (n/64,)."""
    return seconds.repeat_interleave(_NF4_SECOND)[: len(scales)] * scales + mean
