"""A pretrained model by name, opened for training, merging or shrinking."""

from pathlib import Path

from settle.library.resolve import resolve_whole
from settle.model.pretrained import Pretrained


def open_pretrained(name: str | Path) -> Pretrained:
    """Open the whole model that a name or a path stands for; no weights are read.

    Raises what `resolve_whole` and `Pretrained.open` raise.
    """
    return Pretrained.open(resolve_whole(name).source)
