"""Bytes of a model's weights by the type of its file, and what its matrices cost a processor beside those of Q8_0.

Bits a weight of the matrices, and of the two tables (embedding and output), which most mixes store in a finer type. The
block formats' own sizes: ggml's types; the share of finer blocks in the K mixes from published files of Llama 3 8B.

Some types are repacked for wide instructions and others are not, so the number of bits alone says little of what they
cost a processor. Measured with `bench/type_rates.py` on an AMD EPYC with AVX2 (November 2026); two runs of a machine's
own scale both, not their order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from settle.base.errors import UsageError
from settle.base.registry import nearest
from settle.formats import Weights
from settle.library.model_shape import ModelShape
from settle.machine import Machine


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
CHOICES = ("q8_0", "q6_k", "q4_k_m", "q3_k_m")  # what the user chooses among, the best first


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


# --- what matrices cost a processor ---

# Operations of the machine's float32 rate that a weight of Q8_0 is worth: written token by token, and of a prompt.
WRITTEN_OPERATIONS, READ_OPERATIONS = 11.0, 2.8
# What a layer does to a token of a prompt next to its matrices (norms, rotations, softmax, activations), for each unit
# of its width, as weights of Q8_0 that cost the same. Seven made models, 4 to 24 layers of width 128 to 1,024.
LAYER_WEIGHTS = 3600.0
# By type, beside Q8_0: a token written, a token of a prompt.
COSTS: dict[str, tuple[float, float]] = {
    "f32": (2.5, 1.85),
    "f16": (1.55, 1.76),
    "bf16": (1.63, 1.54),
    "q8_0": (1.0, 1.0),
    "q6_k": (0.92, 0.88),
    "q5_k": (0.91, 0.7),
    "q5_1": (1.19, 2.31),
    "q5_0": (0.98, 1.26),
    "q4_k": (0.49, 0.84),
    "q4_1": (0.77, 1.82),
    "q4_0": (0.66, 0.71),
    "iq4_nl": (0.72, 0.82),
    "iq4_xs": (0.8, 0.66),
    "q3_k": (0.87, 0.83),
    "iq3_s": (2.09, 0.94),
    "iq3_xxs": (1.82, 1.16),
    "q2_k": (0.56, 0.71),
}
# The type of most matrices of a mix, of its output matrix, and what both become in a model too narrow for them.
NARROW = {"q6_k": "q8_0", "q5_k": "q5_1", "q4_k": "q5_0", "q3_k": "iq4_nl", "q2_k": "iq4_nl", "iq4_xs": "iq4_nl"}


@dataclass(frozen=True)
class Matrices:
    """Weights by type."""

    written: Mapping[str, float]  # that every token written passes through
    read: Mapping[str, float]  # that every token of a prompt does; the output matrix is none of these


def matrices_of(file: Weights) -> Matrices:
    """Count the weights that a GGUF file stores by type; experts by the share that a token is sent to."""
    architecture = file.metadata.get("general.architecture")
    experts, used = (file.metadata.get(f"{architecture}.expert_{key}") for key in ("count", "used_count"))
    share = used / experts if isinstance(used, int) and isinstance(experts, int) and used and experts else 1.0
    head = "output.weight" if "output.weight" in file.tensors else "token_embd.weight"
    written: dict[str, float] = {}
    read: dict[str, float] = {}
    for name, tensor in file.tensors.items():
        if len(tensor.shape) < 2 or (name.startswith("token_embd") and name != head):
            continue
        rows, columns = tensor.shape[-2:]
        number = rows * columns * (tensor.shape[0] * share if len(tensor.shape) > 2 else 1)
        kind = tensor.dtype.lower()
        written[kind] = written.get(kind, 0.0) + number
        if name != head:
            read[kind] = read.get(kind, 0.0) + number
    return Matrices(written, read)


def matrices_as(shape: ModelShape, type_name: str) -> Matrices:
    """Count the weights of a model that would be stored as a type, such as q4_k_m."""
    name = type_name.lower()
    body = next((kind for kind in sorted(COSTS, key=len, reverse=True) if name.startswith(kind)), "q8_0")
    head = body if body in ("f32", "f16", "bf16", "q8_0") else "q6_k"
    if shape.width % BLOCK:
        body, head = NARROW.get(body, body), NARROW.get(head, head)
    inside, table = float(max(shape.read - shape.table, 0)), float(shape.table)
    written = {body: inside + table} if head == body else {body: inside, head: table}
    return Matrices(written, {body: inside})


def written_seconds(shape: ModelShape, type_name: str, machine: Machine, matrices: Matrices | None) -> float:
    """Return the seconds of one token written: what is computed, or what is read where that takes longer."""
    found = matrices or matrices_as(shape, type_name)
    computed = WRITTEN_OPERATIONS * _q8_weights(found.written, 0) / _float32(machine)
    return max(computed, read_bytes(shape, type_name) / machine.bandwidth)


def read_seconds(shape: ModelShape, type_name: str, machine: Machine, matrices: Matrices | None) -> float:
    """Return the seconds of one token of a prompt."""
    found = matrices or matrices_as(shape, type_name)
    return READ_OPERATIONS * (_q8_weights(found.read, 1) + layer_weights(shape)) / _float32(machine)


def layer_weights(shape: ModelShape) -> float:
    """Weights of Q8_0 that cost as much as what all layers do to a token of a prompt next to their matrices."""
    return LAYER_WEIGHTS * shape.layers * shape.width


def _q8_weights(weights: Mapping[str, float], which: int) -> float:
    """Return as many weights of Q8_0 as cost the same. which: 0 for a token written, 1 for one of a prompt."""
    return sum(number * COSTS.get(kind, (1.0, 1.0))[which] for kind, number in weights.items())


def _float32(machine: Machine) -> float:
    return machine.flops.get("float32") or machine.matrix_flops
