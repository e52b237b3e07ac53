"""From one GGUF file to a smaller one by leaving rows of the token tables out. What stays is copied as it
lies, so quantized weights keep every bit. V tokens before, K tokens kept.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from settle.formats import LazyTensor, Weights, beside, write_array
from settle.formats.gguf import TABLES, read_gguf
from settle.formats.gguf.layout import Entry, layout
from settle.shrink.vocabulary import cut_metadata

_PIECE = 4 << 20  # bytes in memory at a time
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


def cut_rows(source: Path, target: Path, kept_ids: Sequence[int], metadata: Mapping[str, object] | None = None) -> Path:
    """The model of `source` with the tokens `kept_ids` (K,), old ids in their new order; written beside and renamed.

    metadata: keys to set. Raises FormatError for a source that is not sound, ResourceError when the disk is too small.
    """
    file = read_gguf(source)
    changes = {
        key: value for key, value in cut_metadata(file.metadata, kept_ids).items() if file.metadata[key] != value
    }
    changes = {key: np.asarray(value, _ARRAYS[key]) if key in _ARRAYS else value for key, value in changes.items()}
    gone = [
        key for key in file.metadata if key.endswith("_token_id") and key not in cut_metadata(file.metadata, kept_ids)
    ]
    changes.update(dict.fromkeys(gone))
    own = f"{file.metadata.get('general.architecture')}.vocab_size"
    if own in file.metadata:
        changes[own] = len(kept_ids)
    cuts = [_Cut(name, tensor, kept_ids if name in TABLES else None) for name, tensor in file.tensors.items()]
    return _write(file, cuts, target, changes | dict(metadata or {}))


def _write(file: Weights, cuts: Sequence[_Cut], target: Path, changes: Mapping[str, object]) -> Path:
    from gguf.utility import model_weight_count_rounded_notation

    if "general.size_label" in file.metadata:
        number = sum(math.prod(cut.shape) for cut in cuts)
        changes = {"general.size_label": model_weight_count_rounded_notation(number), **changes}
    entries = [Entry(cut.name, cut.shape, cut.tensor.dtype, cut.num_bytes) for cut in cuts]
    planned = layout(file, entries, changes)
    with beside(Path(target), planned.total) as path, path.open("wb") as f:
        f.write(planned.header)
        for cut in cuts:
            for piece in cut.pieces():
                write_array(f, piece)
            f.write(bytes(planned.padding(cut.num_bytes)))
    return Path(target)
