"""Bytes of a model's weights by the type of its file.

Bits a weight of the matrices, and of the two tables (embedding and output), which most mixes store in a finer type. The
block formats' own sizes: ggml's types; the share of finer blocks in the K mixes from published files of Llama 3 8B.
"""

from dataclasses import dataclass, replace

from settle.base.errors import UsageError
from settle.base.registry import nearest
from settle.library.model_shape import ModelShape


@dataclass(frozen=True)
class WeightType:
    """Bits of a weight by where it lies."""

    body: float  # in the matrices
    embedding: float
    output: float  # in the output matrix, also of a tied one
    beside: float = 0  # in the matrices of a mixture that are no experts', 0 where they are stored like those


Q6_K = 6.5625
TYPES: dict[str, WeightType] = {
    "f32": WeightType(32, 32, 32),
    "f16": WeightType(16, 16, 16),
    "bf16": WeightType(16, 16, 16),
    "q8_0": WeightType(8.5, 8.5, 8.5),
    "q6_k": WeightType(Q6_K, Q6_K, Q6_K),
    "q5_k_m": WeightType(5.66, 5.5, Q6_K),
    "q5_k_s": WeightType(5.52, 5.5, Q6_K),
    "q5_0": WeightType(5.5, 5.5, Q6_K),
    "q4_k_m": WeightType(4.80, 4.5, Q6_K),
    "q4_k_s": WeightType(4.56, 4.5, Q6_K),
    "q4_k_xl": WeightType(4.95, 4.5, Q6_K),
    "q4_1": WeightType(5.0, 5.0, Q6_K),
    "q4_0": WeightType(4.5, 4.5, Q6_K),
    "iq4_xs": WeightType(4.27, 4.25, Q6_K),
    "iq4_nl": WeightType(4.5, 4.5, Q6_K),
    "q3_k_l": WeightType(4.22, 3.44, Q6_K),
    "q3_k_m": WeightType(3.86, 3.44, Q6_K),
    "q3_k_s": WeightType(3.45, 3.44, Q6_K),
    "iq3_m": WeightType(3.6, 3.44, Q6_K),
    "q2_k": WeightType(2.95, 2.625, Q6_K),
    "iq2_m": WeightType(2.7, 3.44, 4.5),
    "mxfp4": WeightType(4.25, 8.5, 8.5, 8.5),
    "nvfp4": WeightType(4.5, 16, 16, 16),
    "fp8": WeightType(8, 16, 16),
    "mlx-4bit": WeightType(4.5, 4.5, 4.5),
    "mlx-6bit": WeightType(6.5, 6.5, 6.5),
    "mlx-8bit": WeightType(8.5, 8.5, 8.5),
    "awq": WeightType(4.25, 16, 16),
    "nf4": WeightType(4.5, 16, 16),
    "nf4-dq": WeightType(4.127, 16, 16),
    "int8": WeightType(8.06, 16, 16),
}
# A matrix whose rows are no multiple of 256 cannot take a K type: llama.cpp stores the next finer type of blocks of 32.
BLOCK = 256
FALLEN = {
    "q6_k": 8.2, "q5_k_m": 6.2, "q5_k_s": 6.1, "q4_k_m": 5.75, "q4_k_s": 5.5, "q4_k_xl": 5.8, "iq4_xs": 4.5,
    "q3_k_l": 4.9, "q3_k_m": 4.8, "q3_k_s": 4.5, "iq3_m": 4.6, "q2_k": 4.5, "iq2_m": 4.5,
}  # fmt: skip
Q8_0 = 8.5
CHOICES = ("q8_0", "q6_k", "q4_k_m", "q3_k_m")  # what a person chooses among, the best first


def weight_type(name: str) -> WeightType:
    """Return the type of that name. Raises UsageError with the nearest name."""
    found = TYPES.get(name.lower().replace("-k-", "_k_"))
    if found is None:
        raise UsageError(f"unknown type of weights {name!r}", nearest(name.lower(), tuple(TYPES)))
    return found


def weight_bytes(shape: ModelShape, type_name: str) -> float:
    """Bytes of the whole model's weights."""
    kind = _of(shape, type_name)
    tables = shape.table if shape.tied else 2 * shape.table
    body = max(shape.parameters - tables, 0)
    table_bits = shape.table * (kind.output if shape.tied else kind.embedding + kind.output)
    return (_body_bits(shape, kind, body) + table_bits) / 8


def read_bytes(shape: ModelShape, type_name: str) -> float:
    """Bytes of weights that are read for each token that is decoded alone."""
    kind = _of(shape, type_name)
    body = max(shape.read - shape.table, 0)
    return (_body_bits(shape, kind, body) + shape.table * kind.output) / 8


def _body_bits(shape: ModelShape, kind: WeightType, body: float) -> float:
    """Bits of these many weights of matrices, of which a mixture stores those beside its experts as `kind` says."""
    beside = min(body, max(shape.beside_experts - shape.table * (1 if shape.tied else 2), 0)) if kind.beside else 0
    return body * kind.body + beside * (kind.beside - kind.body)


def _of(shape: ModelShape, type_name: str) -> WeightType:
    """Return the type as this model's width lets llama.cpp store it."""
    kind = weight_type(type_name)
    if shape.width % BLOCK == 0:
        return kind
    output = Q8_0 if kind.output == Q6_K else kind.output
    if type_name.lower() in FALLEN:
        return WeightType(FALLEN[type_name.lower()], output, output)
    return replace(kind, output=output)
