"""The types that a GGUF file's tensors can have: one row each, and no other list of them in settle.

Ids and blocks are ggml's (`ggml.h`, `ggml-common.h`); numbers of mixes are llama.cpp's `llama_ftype`. A type that is
added here is read, exported (when it has bars), gated and quantized to; a faster way to numbers than gguf's own may be
added to `model/layers/dequantize.py`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from settle.base.errors import FormatError


@dataclass(frozen=True)
class Bars:
    """What a type of weights may cost.

    kl: mean KL(live ‖ file) in nats per token. logit_error: root mean square difference of log-probabilities over
    the root mean square of the live model's own spread; free of scale, so it also sees damage in a model whose
    distributions are still almost flat. tie: how far apart (nats) two tokens may be for a greedy difference to count
    as a near-tie.
    """

    kl: float
    logit_error: float
    tie: float


@dataclass(frozen=True)
class GgmlType:
    """name: ggml's ("Q4_K"). id: ggml's number. block, block_bytes: values of a block and their bytes.

    error: the share of the squares of normally distributed values that rounding loses, without importance, as measured
    with ggml (tests/shrink/test_ggml.py); None where it was not. mixes: llama.cpp's file types whose base it is → their
    number (general.file_type). rounding: root
    mean square error relative to a tensor's own that the gate accepts in the file. bars: what the gate lets an export
    in this type cost; large_bars: the same with a large vocabulary, of which only the most likely tokens are compared,
    which lie closer together. A type without bars is none that `export` writes. needs_importance: whether it cannot be
    quantized to without an importance matrix. auto: whether `shrink` tries it by itself. slow: whether it is read
    markedly slower than others of its size (values are looked up in a table).
    """

    name: str
    id: int
    block: int
    block_bytes: int
    error: float | None = None
    mixes: Mapping[str, int] = field(default_factory=dict)
    rounding: float = 0.5
    bars: Bars | None = None
    large_bars: Bars | None = None
    needs_importance: bool = False
    auto: bool = False
    slow: bool = False

    @property
    def quantized(self) -> bool:
        """Whether values share a scale, instead of each being a float."""
        return self.block > 1

    @property
    def bits(self) -> float:
        """Bits per value."""
        return 8 * self.block_bytes / self.block

    def divides(self, row: int) -> bool:
        """Whether rows of that many values are a whole number of blocks."""
        return row % self.block == 0

    def num_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of that shape, whose rows the block must divide."""
        return math.prod(shape) // self.block * self.block_bytes


# bench/gate.py measures what sound exports need; the bars leave several times that. Models with a large vocabulary are
# large and sharp, so that llama.cpp's f16 keys and values show.
_FLOAT, _LARGE_FLOAT = Bars(1e-4, 0.005, 0.02), Bars(1e-3, 0.025, 0.05)
_EIGHT, _LARGE_EIGHT = Bars(1e-2, 0.06, 0.30), Bars(2e-2, 0.30, 0.60)
_FIVE, _LARGE_FIVE = Bars(0.05, 0.15, 0.6), Bars(0.10, 0.50, 1.0)
_FOUR, _LARGE_FOUR = Bars(0.25, 0.35, 1.5), Bars(0.50, 1.00, 2.0)

_ROWS = (
    GgmlType("F32", 0, 1, 4, 0.0, mixes={"F32": 0}, rounding=1e-5, bars=_FLOAT, large_bars=_LARGE_FLOAT),
    GgmlType("F16", 1, 1, 2, 4.3e-8, mixes={"F16": 1}, rounding=1e-3, bars=_FLOAT, large_bars=_LARGE_FLOAT),
    GgmlType(
        "BF16", 30, 1, 2, 2.7e-6, mixes={"BF16": 32}, rounding=8e-3,
        bars=Bars(1e-3, 0.02, 0.10), large_bars=Bars(3e-3, 0.06, 0.15),
    ),
    GgmlType(
        "Q8_0", 8, 32, 34, 2.9e-5, mixes={"Q8_0": 7}, rounding=0.02, bars=_EIGHT, large_bars=_LARGE_EIGHT, auto=True
    ),
    GgmlType("Q6_K", 14, 256, 210, 3.2e-4, {"Q6_K": 18}, auto=True),
    GgmlType("Q5_K", 13, 256, 176, 1.3e-3, {"Q5_K_M": 17, "Q5_K_S": 16}, auto=True),
    GgmlType("Q5_1", 7, 32, 24, 1.4e-3, mixes={"Q5_1": 9}, bars=_FIVE, large_bars=_LARGE_FIVE, auto=True),
    GgmlType("Q5_0", 6, 32, 22, 1.8e-3, mixes={"Q5_0": 8}, bars=_FIVE, large_bars=_LARGE_FIVE, auto=True),
    GgmlType("Q4_K", 12, 256, 144, 5.1e-3, {"Q4_K_M": 15, "Q4_K_S": 14}, auto=True),
    GgmlType("Q4_1", 3, 32, 20, 6.1e-3, mixes={"Q4_1": 3}, bars=_FOUR, large_bars=_LARGE_FOUR, auto=True),
    GgmlType("Q4_0", 2, 32, 18, 7.4e-3, mixes={"Q4_0": 2}, bars=_FOUR, large_bars=_LARGE_FOUR, auto=True),
    GgmlType("IQ4_NL", 20, 32, 18, 5.9e-3, mixes={"IQ4_NL": 25}, auto=True),
    GgmlType("MXFP4", 39, 32, 17, 1.3e-2),
    GgmlType("IQ4_XS", 23, 256, 136, 5.9e-3, {"IQ4_XS": 30}, auto=True),
    GgmlType("IQ3_S", 21, 256, 110, auto=True, slow=True),
    GgmlType("Q3_K", 11, 256, 110, 2.3e-2, {"Q3_K_L": 13, "Q3_K_M": 12, "Q3_K_S": 11}, auto=True),
    GgmlType("IQ3_XXS", 18, 256, 98, needs_importance=True, auto=True, slow=True),
    GgmlType("Q2_K", 10, 256, 84, 8.8e-2, {"Q2_K": 10}, auto=True),
    GgmlType("IQ2_S", 22, 256, 82, needs_importance=True),
    GgmlType("IQ2_XS", 17, 256, 74, needs_importance=True),
    GgmlType("IQ2_XXS", 16, 256, 66, needs_importance=True),
    GgmlType("IQ1_M", 29, 256, 56, needs_importance=True),
    GgmlType("IQ1_S", 19, 256, 50, needs_importance=True),
)  # fmt: skip
# By name, the most precise first.
GGML: dict[str, GgmlType] = {row.name: row for row in _ROWS}


def ggml_type(name: str) -> GgmlType:
    """Return the row of a type, in capitals or not. Raises FormatError for one that is not in the table."""
    row = GGML.get(name.upper())
    if row is None:
        raise FormatError(f"the type {name} is not read here", f"use a file of another type: {', '.join(GGML)}")
    return row


def is_float(name: str) -> bool:
    """Whether a tensor's type, of this table or another one of ggml, holds plain floats."""
    return name in GGML and not GGML[name].quantized


def exported() -> tuple[str, ...]:
    """Names, in small letters, of the types that `settle export` writes."""
    return tuple(row.name.lower() for row in GGML.values() if row.bars is not None)


def block_id(name: str) -> int:
    """Return the number that ggml gives a type, of weights or not."""
    from gguf.constants import GGMLQuantizationType

    return GGML[name].id if name in GGML else int(GGMLQuantizationType[name])


def block_of(code: int) -> tuple[str, int, int] | None:
    """Name, values and bytes of a block of ggml's type number `code`, weights or not; None for an unknown number."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    for row in GGML.values():
        if row.id == code:
            return row.name, row.block, row.block_bytes
    if code not in GGML_QUANT_SIZES:
        return None
    kind = GGMLQuantizationType(code)
    return kind.name, *GGML_QUANT_SIZES[kind]
