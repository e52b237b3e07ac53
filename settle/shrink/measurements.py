"""Everything that `auto` has to know of a model, measured in one go: importance matrix and table of sensitivities.

The costs that the curvature predicts are right for small errors and for errors that are independent. Types of few bits
make neither, and what they really cost is measured with whole groups of tensors in one type; all tensors of a group
are corrected alike.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from settle.formats.gguf import read_gguf
from settle.library.pretrained import open_pretrained
from settle.shrink.activations.curvature import curvature
from settle.shrink.activations.importance import Inputs
from settle.shrink.types.fake_quant import Trial, batches
from settle.shrink.types.imatrix import Importance
from settle.shrink.types.sensitivity import TYPES, Sensitivity, sensitivity

BATCH = 512  # tokens of one backward pass
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Measured:
    """importance: of every matrix's inputs. table: what each tensor costs in each type."""

    importance: Importance
    table: Sensitivity


def measure(
    source: Path,
    windows: Sequence[np.ndarray],
    dataset: str = "",
    types: Sequence[str] = TYPES,
    importance: Importance | None = None,
    probes: Sequence[np.ndarray] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Measured:
    """Measure the model of a GGUF file on `windows` of ids.

    importance: taken instead of the one that is measured on the way. probes: windows on which groups of tensors are
    really tried; none are when it is empty. progress: called with (what is done, steps done, steps in all). The same
    model, windows and seed give the same table.
    """
    tell = progress or (lambda what, done, total: None)
    opened = open_pretrained(source)
    file = read_gguf(Path(source))
    model = opened.load(trainable=True)
    inputs = Inputs(model)
    grouped = batches(windows, BATCH)
    bends = curvature(model, grouped, seed, inputs, lambda done, total: tell("sensitivity", done, total))
    importance = importance or inputs.importance(opened.part, dataset)
    table = sensitivity(
        file, opened.part, bends, importance, types, seed, lambda done, total: tell("types", done, total)
    )
    about = {"dataset": dataset, "tokens": int(sum(map(len, windows))), "seed": seed, "types": list(types)}
    if len(probes):
        trial = Trial(model, opened.part, file, importance, probes)
        table, tried = corrected(table, trial, lambda done, total: tell("trials", done, total))
        about |= {"trials": tried, "trial_tokens": trial.num_tokens}
    return Measured(importance, replace(table, about=about))


def group_of(name: str) -> str:
    """Tensors of one group do the same in every layer."""
    return re.sub(r"^blk\.\d+\.", "", name).removesuffix(".weight")


def corrected(
    table: Sensitivity, trial: Trial, progress: Callable[[int, int], None]
) -> tuple[Sensitivity, dict[str, dict[str, list[float]]]]:
    """The table with each group's costs multiplied by what it measured over what was predicted, and those pairs:
    group → type → [predicted, measured] nats a token.
    """
    groups: dict[str, list[str]] = {}
    for name in table.costs:
        groups.setdefault(group_of(name), []).append(name)
    planned = [(group, kind) for group, names in groups.items() for kind in probed(table, names)]
    tried: dict[str, dict[str, list[float]]] = {group: {} for group in groups}
    for number, (group, kind) in enumerate(planned):
        kinds = {name: kind for name in groups[group] if kind in table.costs[name]}
        measured = float(trial.divergence(kinds).mean())
        tried[group][kind] = [table.predicted(kinds), max(measured, 0.0)]
        progress(number + 1, len(planned))
    trial.put({})
    costs = {
        name: {k: cost * _factor(tried[group_of(name)], k, table.num_bytes[name]) for k, cost in found.items()}
        for name, found in table.costs.items()
    }
    return replace(table, costs=costs), tried


def probed(table: Sensitivity, names: Sequence[str]) -> list[str]:
    """Which types are tried: the smallest, where the prediction errs most, and one of about half its error's size."""
    sizes: dict[str, int] = {}
    for name in names:
        for kind, size in table.num_bytes[name].items():
            sizes[kind] = sizes.get(kind, 0) + size
    ordered = sorted(sizes, key=lambda k: (sizes[k], k))
    return list(dict.fromkeys([ordered[0], ordered[len(ordered) // 2]]))


def _factor(tried: Mapping[str, Sequence[float]], kind: str, num_bytes: Mapping[str, int]) -> float:
    """Measured over predicted of the tried type whose size is nearest."""
    known = [k for k, (predicted, measured) in tried.items() if predicted > 0 and measured > 0 and k in num_bytes]
    if not known:
        return 1.0
    nearest = min(known, key=lambda k: abs(num_bytes[k] - num_bytes[kind]))
    predicted, measured = tried[nearest]
    return measured / predicted
