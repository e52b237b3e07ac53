"""The models on this machine by name: home()/models/<name>/model.json says where each one's files lie."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from settle.base.errors import ResourceError, RunError, UsageError
from settle.base.run import NAME, home, read_json, write_json

Kind = Literal["gguf", "safetensors"]


@dataclass(frozen=True)
class StoredModel:
    """name: in the store. kind: of its files. path: a GGUF file, or a folder in Hugging Face's layout; in the store or
    wherever it was linked from. sha256: of the file, or of a folder's files (see `settle.model.source`).
    origin: where it was pulled from. license: as its source says, or "".
    """

    name: str
    kind: Kind
    path: Path
    sha256: str
    origin: str
    license: str = ""
    stamp: str = ""

    @property
    def folder(self) -> Path:
        return store() / self.name


def store() -> Path:
    """The folder of all models."""
    return home() / "models"


def all_models() -> list[StoredModel]:
    """Every model in the store, by name."""
    folders = sorted(store().iterdir()) if store().is_dir() else []
    return [_read(folder) for folder in folders if (folder / "model.json").is_file()]


def find_model(name: str) -> StoredModel | None:
    """The model of that name, or None. Raises UsageError when its files are gone."""
    folder = store() / name
    if not NAME.fullmatch(name) or not (folder / "model.json").is_file():
        return None
    model = _read(folder)
    if not model.path.exists():
        raise UsageError(f"the files of {name!r} are gone from {model.path}", f"`settle pull {model.origin}` again")
    return model


def add_model(model: StoredModel) -> None:
    """Put a model into the store; its files are where it says. Raises ResourceError when that cannot be written."""
    try:
        model.folder.mkdir(parents=True, exist_ok=True)
        inside = model.path.is_relative_to(model.folder)
        path = model.path.relative_to(model.folder) if inside else model.path.absolute()
        write_json(model.folder / "model.json", asdict(model) | {"path": str(path)})
    except OSError as e:
        raise ResourceError(f"cannot write to {model.folder}: {e.strerror}", "make room or permission there") from None


def model_name(wanted: str) -> str:
    """`wanted` (a hub id, a file's stem …) cleaned to a usable name: lower case, the last part of a path."""
    last = wanted.rstrip("/").rsplit("/", 1)[-1].lower()
    return re.sub(r"[^a-z0-9._-]+", "-", last).strip("-._")[:64].rstrip("-._") or "model"


def stamp_of(path: Path) -> str:
    """Sizes and times of a model's files: as long as they are the same, so is its hash."""
    files = [p for p in path.iterdir() if p.is_file()] if path.is_dir() else [path]
    found = [p.stat() for p in files]
    return f"{len(found)}:{sum(s.st_size for s in found)}:{max((s.st_mtime_ns for s in found), default=0)}"


def _read(folder: Path) -> StoredModel:
    said = read_json(folder / "model.json")
    try:
        # a path inside the folder is relative, so that a store can be moved
        return StoredModel(**said | {"name": folder.name, "path": folder / said["path"]})
    except (TypeError, KeyError):
        raise RunError(f"{folder / 'model.json'} is damaged", f"remove {folder} and pull it again") from None
