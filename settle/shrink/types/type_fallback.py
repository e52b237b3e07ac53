"""The trap of 256: what a recipe really gives a model whose rows are no multiple of it, and what is better.

A K-quant that does not fit is replaced by a larger type, so a file can become larger than one of a plainer type that is
more precise. That is known before anything is written.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from settle.formats import Weights
from settle.shrink.types.ggml import block
from settle.shrink.types.mixes import MIXES, Choice, mix_types
from settle.shrink.types.quantize_file import file_bytes

# The part of the squares of normally distributed values that is lost, without importance: measured with ggml, see the
# test. It says which of two types is the more precise, and how a mix of several stands to another.
LOST = {
    "F32": 0.0,
    "F16": 4.3e-8,
    "BF16": 2.7e-6,
    "Q8_0": 2.9e-5,
    "Q6_K": 3.2e-4,
    "Q5_K": 1.3e-3,
    "Q5_1": 1.4e-3,
    "Q5_0": 1.8e-3,
    "Q4_K": 5.1e-3,
    "IQ4_NL": 5.9e-3,
    "IQ4_XS": 5.9e-3,
    "Q4_1": 6.1e-3,
    "Q4_0": 7.4e-3,
    "Q3_K": 2.3e-2,
    "Q2_K": 8.8e-2,
}


@dataclass(frozen=True)
class Fallen:
    """tensors: those that fell back. num_bytes: of the whole file; promised: what it would have without the trap.

    better: a recipe that is more precise in a file that is no larger, and the bytes of that file; None, 0 without one.
    """

    recipe: str
    tensors: Mapping[str, Choice]
    num_tensors: int
    num_bytes: int
    promised: int
    better: str | None
    better_bytes: int

    def told(self) -> str:
        """One sentence of it, with numbers."""
        ways = Counter(f"{c.wanted} → {c.kind}" for c in self.tensors.values())
        kinds = ", ".join(f"{number} × {way}" for way, number in ways.most_common())
        text = (
            f"{self.recipe}: rows of {len(self.tensors)} of {self.num_tensors} tensors are no whole number of blocks "
            f"({kinds}), so the file has {self.num_bytes / 1e6:.1f} MB instead of {self.promised / 1e6:.1f} MB"
        )
        if self.better is not None:
            text += f"; {self.better} is more precise and has {self.better_bytes / 1e6:.1f} MB"
        for kind, other in self.instead.items():
            text += f"; {other} in place of {kind} is more precise in as many bytes"
        return text

    @property
    def instead(self) -> dict[str, str]:
        """Types that tensors fell back to → the most precise one of as many bytes, where that is another."""
        found = {}
        for kind in sorted({choice.kind for choice in self.tensors.values()}):
            same = [other for other in LOST if block(other) == block(kind)]
            best = min(same, key=LOST.__getitem__)
            if best != kind:
                found[kind] = best
        return found


def fallen(file: Weights, recipe: str, has_importance: bool = False) -> Fallen | None:
    """What falls back in a file under a recipe, and what is better; None when nothing does."""
    chosen = mix_types(file, recipe, has_importance)
    tensors = {name: choice for name, choice in chosen.items() if choice.fell_back}
    if not tensors:
        return None
    size = file_bytes(file, {name: choice.kind for name, choice in chosen.items()})
    spared = sum(c.num_bytes - _wished(file, name, c.wanted) for name, c in tensors.items())
    better, better_bytes = _better(file, chosen, size, has_importance)
    return Fallen(recipe, tensors, len(chosen), size, round(size - spared), better, better_bytes)


def lost(file: Weights, chosen: Mapping[str, Choice]) -> float:
    """The part of the squares of all weights that a choice loses, if they were normally distributed and alike."""
    sizes = {name: math.prod(file.tensors[name].shape) for name in chosen}
    return sum(LOST.get(c.kind, 0.0) * sizes[n] for n, c in chosen.items()) / sum(sizes.values())


def _better(file: Weights, chosen: Mapping[str, Choice], size: int, has_importance: bool) -> tuple[str | None, int]:
    """The most precise recipe of those that are more precise and no larger; the smaller one of two alike."""
    found: list[tuple[float, int, str]] = []
    for recipe in MIXES:
        other = mix_types(file, recipe, has_importance)
        num_bytes = file_bytes(file, {name: choice.kind for name, choice in other.items()})
        if num_bytes <= size:
            found.append((lost(file, other), num_bytes, recipe))
    loss, num_bytes, recipe = min(found)
    return (recipe, num_bytes) if loss < lost(file, chosen) else (None, 0)


def _wished(file: Weights, name: str, kind: str) -> float:
    """Bytes of a tensor if its rows were a whole number of blocks."""
    values, size = block(kind)
    return math.prod(file.tensors[name].shape) / values * size
