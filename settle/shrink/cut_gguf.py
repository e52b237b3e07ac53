"""From one GGUF file to a smaller one by leaving things out: rows of the token tables, blocks. What stays is copied as
it lies, so quantized weights keep every bit. V tokens before, K tokens kept.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from settle.base.errors import UsageError
from settle.formats import LazyTensor, Weights, beside, write_array
from settle.formats.gguf import TABLES, read_gguf
from settle.formats.gguf.layout import Entry, layout
from settle.shrink.vocabulary import cut_metadata

_PIECE = 4 << 20  # bytes in memory at a time
_BLOCK = re.compile(r"blk\.(\d+)\.(.*)")
# the types in which other programs write these lists
_ARRAYS = {"tokenizer.ggml.scores": np.float32, "tokenizer.ggml.token_type": np.int32}


@dataclass(frozen=True)
class _Cut:
    """A tensor as it goes into the new file. rows: which of its rows, None for all."""

    name: str
    tensor: LazyTensor
    rows: Sequence[int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape if self.rows is None else (len(self.rows), *self.tensor.shape[1:])

    @property
    def num_bytes(self) -> int:
        return self.tensor.num_bytes // self.tensor.shape[0] * self.shape[0]

    def pieces(self) -> Iterator[np.ndarray]:
        """Its bytes, uint8, some at a time; what was read is given back."""
        place, number = self.tensor.place, self.tensor.num_bytes
        if self.rows is None:
            for first in range(0, number, _PIECE):
                last = min(first + _PIECE, number)
                yield place.bytes(first, last)
                place.forget(first, last)
            return
        row = number // self.tensor.shape[0]
        table = place.bytes().reshape(self.tensor.shape[0], row)
        step = max(1, _PIECE // row)
        for first in range(0, len(self.rows), step):
            chosen = np.asarray(self.rows[first : first + step])
            yield table[chosen]
            place.forget(int(chosen.min()) * row, int(chosen.max() + 1) * row)


def cut_rows(source: Path, target: Path, kept: Sequence[int], metadata: Mapping[str, Any] | None = None) -> Path:
    """The model of `source` with the tokens `kept` (K,), old ids in their new order; written beside and renamed.

    metadata: keys to set. Raises FormatError for a source that is not sound, ResourceError when the disk is too small.
    """
    file = read_gguf(source)
    changes = {key: value for key, value in cut_metadata(file.metadata, kept).items() if file.metadata[key] != value}
    changes = {key: np.asarray(value, _ARRAYS[key]) if key in _ARRAYS else value for key, value in changes.items()}
    gone = [key for key in file.metadata if key.endswith("_token_id") and key not in cut_metadata(file.metadata, kept)]
    changes |= dict.fromkeys(gone)
    own = f"{file.metadata.get('general.architecture')}.vocab_size"
    if own in file.metadata:
        changes[own] = len(kept)
    cuts = [_Cut(name, tensor, kept if name in TABLES else None) for name, tensor in file.tensors.items()]
    return _write(file, cuts, target, changes | dict(metadata or {}))


def cut_blocks(source: Path, target: Path, kept: Sequence[int], metadata: Mapping[str, Any] | None = None) -> Path:
    """The model of `source` with only these of its blocks, renumbered in their order; as `cut_rows`.

    Raises UsageError for a file whose metadata differ from block to block.
    """
    file = read_gguf(source)
    key = f"{file.metadata.get('general.architecture')}.block_count"
    per_block = [k for k, v in file.metadata.items() if isinstance(v, list) and _is_of_blocks(k, v, file.metadata[key])]
    if per_block:
        raise UsageError(f"{per_block[0]} differs from block to block", "prune the model in Hugging Face's layout")
    place = {old: new for new, old in enumerate(kept)}
    cuts = []
    for name, tensor in file.tensors.items():
        block = _BLOCK.fullmatch(name)
        if block is None:
            cuts.append(_Cut(name, tensor))
        elif int(block[1]) in place:
            cuts.append(_Cut(f"blk.{place[int(block[1])]}.{block[2]}", tensor))
    return _write(file, cuts, target, {key: len(kept)} | dict(metadata or {}))


def _is_of_blocks(key: str, value: list[Any], blocks: int) -> bool:
    return not key.startswith(("tokenizer.", "general.")) and len(value) == blocks and len(set(value)) > 1


def _write(file: Weights, cuts: Sequence[_Cut], target: Path, changes: Mapping[str, Any]) -> Path:
    from gguf.utility import model_weight_count_rounded_notation

    if "general.size_label" in file.metadata:
        number = sum(math.prod(cut.shape) for cut in cuts)
        changes = {"general.size_label": model_weight_count_rounded_notation(number)} | changes
    entries = [Entry(cut.name, cut.shape, cut.tensor.dtype, cut.num_bytes) for cut in cuts]
    planned = layout(file, entries, changes)
    with beside(Path(target), planned.total) as path, path.open("wb") as f:
        f.write(planned.header)
        for cut in cuts:
            for piece in cut.pieces():
                write_array(f, piece)
            f.write(bytes(planned.padding(cut.num_bytes)))
    return Path(target)
