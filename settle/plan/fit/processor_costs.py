"""What llama.cpp's matrices cost a processor by the type of their weights, beside those of Q8_0.

Some types are repacked for wide instructions and others are not, so the number of bits alone says little. Measured with
`bench/type_rates.py` on an AMD EPYC with AVX2 (November 2026); two runs of a machine's own scale both, not their order.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from settle.formats import Weights
from settle.library.model_shape import ModelShape
from settle.machine import Machine
from settle.plan.fit.weight_types import BLOCK, read_bytes

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
    """As a GGUF file stores them. Experts count by the share that a token is sent to."""
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
    """Of a model that would be stored as a type, such as q4_k_m."""
    name = type_name.lower()
    body = next((kind for kind in sorted(COSTS, key=len, reverse=True) if name.startswith(kind)), "q8_0")
    head = body if body in ("f32", "f16", "bf16", "q8_0") else "q6_k"
    if shape.width % BLOCK:
        body, head = NARROW.get(body, body), NARROW.get(head, head)
    inside, table = float(max(shape.read - shape.table, 0)), float(shape.table)
    written = {body: inside + table} if head == body else {body: inside, head: table}
    return Matrices(written, {body: inside})


def written_seconds(shape: ModelShape, type_name: str, machine: Machine, matrices: Matrices | None) -> float:
    """Of one token: what is computed, or what is read where that takes longer."""
    found = matrices or matrices_as(shape, type_name)
    computed = WRITTEN_OPERATIONS * _q8_weights(found.written, 0) / _float32(machine)
    return max(computed, read_bytes(shape, type_name) / machine.bandwidth)


def read_seconds(shape: ModelShape, type_name: str, machine: Machine, matrices: Matrices | None) -> float:
    """Of one token of a prompt."""
    found = matrices or matrices_as(shape, type_name)
    return READ_OPERATIONS * (_q8_weights(found.read, 1) + layer_weights(shape)) / _float32(machine)


def layer_weights(shape: ModelShape) -> float:
    """Weights of Q8_0 that cost as much as what all layers do to a token of a prompt next to their matrices."""
    return LAYER_WEIGHTS * shape.layers * shape.width


def _q8_weights(weights: Mapping[str, float], which: int) -> float:
    """As many weights of Q8_0 cost the same. which: 0 for a token written, 1 for one of a prompt."""
    return sum(number * COSTS.get(kind, (1.0, 1.0))[which] for kind, number in weights.items())


def _float32(machine: Machine) -> float:
    return machine.flops.get("float32") or machine.matrix_flops
