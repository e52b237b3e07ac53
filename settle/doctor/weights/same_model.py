"""Other files of the same model: in other types of weights, or damaged where this one is not."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from settle.base.errors import SettleError
from settle.formats import Weights
from settle.formats.gguf import read_gguf
from settle.formats.gguf.metadata import TOKENS
from settle.library.resolve import all_refs

MOST_FILES = 12  # of a folder, and of the store


def other_files(path: Path, weights: Weights) -> Iterator[Path]:
    """Files in the folder of `path` and in the store that hold the same model: the same shapes and the same tokens."""
    stored = [ref.path for ref in all_refs() if ref.kind == "model" and ref.source.kind == "gguf"]
    seen = {path.resolve()}
    for other in [*sorted(path.parent.glob("*.gguf"))[:MOST_FILES], *stored[:MOST_FILES]]:
        if other.resolve() in seen or not other.is_file():
            continue
        seen.add(other.resolve())
        try:
            theirs = read_gguf(other)
        except (SettleError, OSError):
            continue
        if _shapes(theirs) == _shapes(weights) and theirs.metadata.get(TOKENS) == weights.metadata.get(TOKENS):
            yield other


def _shapes(weights: Weights) -> Mapping[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in weights.tensors.items()}
