"""The files of a pretrained model: what they are, and their hash."""

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Literal, Self

from settle.base.errors import FormatError, UsageError
from settle.base.visible import visible_name

Kind = Literal["gguf", "safetensors"]

_PIECE_BYTES = 1 << 20  # read at a time


@dataclass(frozen=True)
class Source:
    """Where a model's files are.

    path: a GGUF file, or a folder in Hugging Face's layout. name: of the model, to show and to build names from.
    recorded: the sha256 that is known of the files as they are now, or "". origin: their origin, or "".
    """

    path: Path
    kind: Kind
    name: str
    recorded: str = ""
    origin: str = ""
    license: str = ""

    @classmethod
    def at(cls, path: Path) -> Self:
        """Return the model at a path. Raises UsageError for no path, FormatError for a folder without a model."""
        if path.is_dir():
            if not (path / "config.json").is_file():
                raise FormatError(
                    f"there is no config.json in {path}", "give a folder in Hugging Face's layout, or a .gguf"
                )
            return cls(path, "safetensors", visible_name(path.resolve().name))
        if not path.exists():
            raise UsageError(f"there is no model at {path}", "check the path")
        return cls(path, "gguf", visible_name(path.stem))

    @cached_property
    def sha256(self) -> str:
        """The hash of the file, or of the names and hashes of the files of a folder that decide how it behaves."""
        return self.recorded or hash_of(self.path)


def hash_of(path: Path) -> str:
    """sha256 of a file, or of the names and hashes of a folder's weights, config and tokenizer."""
    if not path.is_dir():
        digest = sha256()
        with path.open("rb") as f:
            while piece := f.read(_PIECE_BYTES):
                digest.update(piece)
        return digest.hexdigest()
    files = [p for p in path.iterdir() if p.suffix in (".safetensors", ".json", ".jinja", ".model") and p.is_file()]
    lines = [f"{p.name} {hash_of(p)}" for p in sorted(files)]
    return sha256("\n".join(lines).encode()).hexdigest()
