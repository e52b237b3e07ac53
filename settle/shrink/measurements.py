"""What quantizers need to know of a model, measured in one pass: the importance matrix and the table of costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from settle.formats.gguf import read_gguf
from settle.library.pretrained import open_pretrained
from settle.shrink.activations.curvature import curvature
from settle.shrink.activations.importance import Inputs
from settle.shrink.types.cost_table import CostTable
from settle.shrink.types.imatrix import Importance
from settle.shrink.types.sensitivity import TYPES, measure_costs

BATCH = 512  # tokens of one backward pass
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Measurements:
    """importance: of every matrix's inputs. costs: what each tensor costs in each type."""

    importance: Importance
    costs: CostTable


def measure(
    source: Path,
    windows: Sequence[np.ndarray],
    dataset: str = "",
    types: Sequence[str] = TYPES,
    importance: Importance | None = None,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> Measurements:
    """Measure the model of a GGUF file on `windows` of ids.

    importance: taken instead of the one that is measured on the way. on_progress: called with (what is
    done, steps done, steps in all). The same model, windows and seed give the same table.
    """
    report = on_progress or (lambda what, done, total: None)
    opened = open_pretrained(source)
    file = read_gguf(Path(source))
    model = opened.load(trainable=True)
    inputs = Inputs(model)
    grouped = batches(windows, BATCH)
    blocks = curvature(model, grouped, seed, inputs, lambda done, total: report("sensitivity", done, total))
    importance = importance or inputs.importance(opened.part, dataset)
    table = measure_costs(
        file, opened.part, blocks, importance, types, seed, lambda done, total: report("types", done, total)
    )
    about = {"dataset": dataset, "tokens": int(sum(map(len, windows))), "seed": seed, "types": list(types)}
    return Measurements(importance, replace(table, about=about))


def batches(windows: Sequence[np.ndarray], num_tokens: int) -> list[list[np.ndarray]]:
    """Windows in groups of about `num_tokens` tokens."""
    groups: list[list[np.ndarray]] = [[]]
    for window in windows:
        if groups[-1] and sum(map(len, groups[-1])) + len(window) > num_tokens:
            groups.append([])
        groups[-1].append(window)
    return groups
