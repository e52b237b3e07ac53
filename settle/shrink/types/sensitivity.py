"""What each tensor of a model costs in each type: nats of divergence, predicted before any file is made.

    cost = ½ Σ F δ²     F: how much predictions hang on a weight (`importance.py`), δ: its rounding error in the type

The error is that of llama.cpp's own quantizer with the same importance matrix, on rows that are drawn by how much they
matter, so that a large tensor takes no longer than a small one. Costs of tensors add up: rounding errors do not know of
each other.

Letters: O rows and I columns of a matrix, B blocks of 32 in a row, K rows that are sampled.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from settle.formats import LazyTensor, Weights
from settle.formats.gguf.types import GGML, ggml_type
from settle.model.architectures import Architecture
from settle.shrink.activations.importance import BLOCK
from settle.shrink.types import ggml
from settle.shrink.types.budget import CostTable
from settle.shrink.types.imatrix import Importance
from settle.shrink.types.mixes import quantizable

TYPES = tuple(row.name for row in reversed(GGML.values()) if row.auto)
SAMPLED_VALUES = 1 << 17  # values of a tensor that are quantized in each type to measure the error


def measure_costs(
    file: Weights,
    part: Architecture,
    curvature: Mapping[str, Tensor],
    importance: Importance | None,
    types: Sequence[str] = TYPES,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> CostTable:
    """Measure the table for every tensor of a GGUF file that may be quantized and whose curvature is known.

    curvature: parameter → (O, B), from `importance.py`. importance: the one that the file will be quantized with.
    """
    known = {name: of for name, of in part.gguf_members().items() if set(of) <= set(curvature)}
    names = quantizable(file) & set(known)
    tensors = [t for t in file.tensors.values() if t.name in names]
    costs: dict[str, dict[str, float]] = {}
    sizes: dict[str, dict[str, int]] = {}
    for number, tensor in enumerate(tensors):
        bends = torch.stack([part.to_gguf(p, curvature[p]) for p in known[tensor.name]])
        means = None if importance is None else importance.means.get(tensor.name)
        possible = candidates(tensor, types, means is not None)
        costs[tensor.name] = _costs(tensor, bends.numpy(), means, possible, seed + number)
        sizes[tensor.name] = {kind: ggml.num_bytes(kind, math.prod(tensor.shape)) for kind in possible}
        if on_progress is not None:
            on_progress(number + 1, len(tensors))
    return CostTable(costs, sizes)


def candidates(tensor: LazyTensor, types: Sequence[str] = TYPES, has_importance: bool = True) -> list[str]:
    """Types that the tensor's rows can have, smallest first; its own is the last when nothing else fits."""
    rows = [row for row in map(ggml_type, types) if row.divides(tensor.shape[-1])]
    possible = [row for row in rows if has_importance or not row.needs_importance]
    return [row.name for row in sorted(possible, key=lambda row: row.bits)] or [tensor.dtype]


def _costs(
    tensor: LazyTensor, bends: np.ndarray, means: np.ndarray | None, types: Sequence[str], seed: int
) -> dict[str, float]:
    """Return nats by type from bends (E, O, B): of the experts one after the other, or E = 1."""
    experts, rows, _ = bends.shape
    costs = dict.fromkeys(types, 0.0)
    values = np.asarray(tensor.load(), np.float32).reshape(experts, rows, -1)
    vectors = np.ones((experts, values.shape[-1]), np.float32) if means is None else means.reshape(experts, -1)
    budget = max(SAMPLED_VALUES // experts, 1 << 13)
    for expert in range(experts):
        chosen, worth = _rows_to_see(values[expert], bends[expert], budget, seed + expert)
        sample = np.ascontiguousarray(values[expert][chosen])
        bend = _spread(bends[expert][chosen], vectors[expert])
        for kind in types:
            error = rounded(sample, kind, None if means is None else vectors[expert]) - sample
            costs[kind] += float(0.5 * np.einsum("r,ri,ri,ri->", worth, bend, error, error, optimize=True))
    return costs


def rounded(values: np.ndarray, kind: str, importance: np.ndarray | None) -> np.ndarray:
    """Round values (R, C) as storing them in a type does."""
    raw = ggml.quantize(values, kind, importance)
    return ggml.dequantize(raw, kind, np.empty(values.shape, np.float32))


def _rows_to_see(values: np.ndarray, bends: np.ndarray, budget: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows to look at, and what each stands for, (K,) both; all of them when they are few.

    A row is drawn as often as its errors can be expected to matter, evenly along the matrix.
    """
    rows, width = values.shape
    wanted = max(64, budget // width)
    if rows <= wanted:
        return np.arange(rows), np.ones(rows)
    block = np.square(values).reshape(rows, -1, BLOCK).sum(-1)
    matters = (block * bends).sum(-1, dtype=np.float64)
    share = matters / matters.sum() if matters.sum() > 0 else np.full(rows, 1 / rows)
    share = 0.9 * share + 0.1 / rows  # a row that never mattered in the text still is in the file
    points = (np.random.default_rng(seed).random() + np.arange(wanted)) / wanted
    drawn = np.searchsorted(np.cumsum(share), points * share.sum()).clip(max=rows - 1)
    chosen, times = np.unique(drawn, return_counts=True)
    return chosen, times / (wanted * share[chosen])


def _spread(bends: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Spread bends (R, B), sums over blocks, by the means (I,) of the inputs' squares → (R, I)."""
    blocks = means.reshape(-1, BLOCK).astype(np.float64)
    totals = blocks.sum(-1, keepdims=True)
    shares = np.where(totals > 0, blocks / np.where(totals > 0, totals, 1), 1 / BLOCK)
    return (bends[:, :, None] * shares).reshape(len(bends), -1)
