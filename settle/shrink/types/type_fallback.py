"""The trap of 256: what a mix really gives a model whose rows are no multiple of it, and what is better.

A K-quant that does not fit is replaced by a larger type, so a file can become larger than one of a plainer type that is
more precise. That is known before anything is written.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from settle.formats import Weights
from settle.formats.gguf.types import GGML, ggml_type
from settle.shrink.types.mixes import MIXES, Choice, mix_types
from settle.shrink.types.quantize_file import file_bytes


@dataclass(frozen=True)
class Fallback:
    """tensors: those that fell back. num_bytes: size of the file; promised: its size without the fallback.

    better: a mix that is more precise in a file that is no larger, and the bytes of that file; None, 0 without one.
    """

    mix: str
    tensors: Mapping[str, Choice]
    num_tensors: int
    num_bytes: int
    promised: int
    better: str | None
    better_bytes: int

    def __str__(self) -> str:
        """One sentence, with numbers."""
        ways = Counter(f"{c.wanted} → {c.kind}" for c in self.tensors.values())
        kinds = ", ".join(f"{number} × {way}" for way, number in ways.most_common())
        text = (
            f"{self.mix}: rows of {len(self.tensors)} of {self.num_tensors} tensors are no whole number of blocks "
            f"({kinds}), so the file has {self.num_bytes / 1e6:.1f} MB instead of {self.promised / 1e6:.1f} MB"
        )
        if self.better is not None:
            text += f"; {self.better} is more precise and has {self.better_bytes / 1e6:.1f} MB"
        for kind, other in self.more_precise.items():
            text += f"; {other} in place of {kind} is more precise in as many bytes"
        return text

    @property
    def more_precise(self) -> dict[str, str]:
        """Types that tensors fell back to → the most precise one of as many bytes, where that is another."""
        best = {}
        for kind in sorted({choice.kind for choice in self.tensors.values()}):
            own = ggml_type(kind)
            same = [row for row in GGML.values() if (row.block, row.block_bytes) == (own.block, own.block_bytes)]
            best[kind] = min(same, key=lambda row: math.inf if row.error is None else row.error).name
        return {kind: other for kind, other in best.items() if other != kind}


def find_fallback(file: Weights, mix: str, has_importance: bool = False) -> Fallback | None:
    """Which tensors of a file fall back under a mix, and what is better; None when none does."""
    chosen = mix_types(file, mix, has_importance)
    tensors = {name: choice for name, choice in chosen.items() if choice.fell_back}
    if not tensors:
        return None
    size = file_bytes(file, {name: choice.kind for name, choice in chosen.items()})
    saved = sum(c.num_bytes - _bytes_if_fitting(file, name, c.wanted) for name, c in tensors.items())
    better, better_bytes = _better_mix(file, chosen, size, has_importance)
    return Fallback(mix, tensors, len(chosen), size, round(size - saved), better, better_bytes)


def expected_error(file: Weights, chosen: Mapping[str, Choice]) -> float:
    """The share of the squares of all weights that rounding to these types loses, were they normally distributed and
    alike: it orders mixes by how precise they are."""
    sizes = {name: math.prod(file.tensors[name].shape) for name in chosen}
    errors = {name: row.error or 0.0 for name, row in GGML.items()}
    return sum(errors.get(c.kind, 0.0) * sizes[name] for name, c in chosen.items()) / sum(sizes.values())


def _better_mix(file: Weights, chosen: Mapping[str, Choice], size: int, has_importance: bool) -> tuple[str | None, int]:
    """The most precise mix of those that are more precise and no larger; the smaller one of two alike."""
    no_larger: list[tuple[float, int, str]] = []
    for mix in MIXES:
        other = mix_types(file, mix, has_importance)
        num_bytes = file_bytes(file, {name: choice.kind for name, choice in other.items()})
        if num_bytes <= size:
            no_larger.append((expected_error(file, other), num_bytes, mix))
    error, num_bytes, mix = min(no_larger)
    return (mix, num_bytes) if error < expected_error(file, chosen) else (None, 0)


def _bytes_if_fitting(file: Weights, name: str, kind: str) -> float:
    """Bytes of a tensor if its rows were a whole number of blocks."""
    return math.prod(file.tensors[name].shape) * ggml_type(kind).bits / 8
