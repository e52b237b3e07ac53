"""The store of models on this machine: home()/models/<name>/model.json says where each model's files are."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, with_config

from settle.base.errors import RunError, UsageError, cannot_write
from settle.base.files import home, read_json, write_json
from settle.base.run import NAME
from settle.model.source import Kind, Source


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class StoredModel:
    """One model of the store.

    path: a GGUF file, or a folder in Hugging Face's layout; in the store or wherever it was linked from. sha256: of
    the file, or of a folder's files (see `settle.model.source`). origin: where it was pulled from. license: as its
    source states it, or "". stamp: of the files when they were hashed (see `stamp_of`).
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

    @property
    def gguf(self) -> Path:
        """Return the file that llama.cpp reads.

        Of a folder in Hugging Face's layout it is a copy, which is written at first use.
        """
        return self.path if self.kind == "gguf" else self.folder / f"{self.name}-bf16.gguf"

    @property
    def source(self) -> Source:
        """The model's files. Their recorded hash counts only while they are unchanged: hashing gigabytes takes long."""
        is_unchanged = self.path.exists() and stamp_of(self.path) == self.stamp
        recorded = self.sha256 if is_unchanged else ""
        return Source(self.path, self.kind, self.name, recorded, self.origin, self.license)


_STORED = TypeAdapter(StoredModel)


def store() -> Path:
    return home() / "models"


def all_models() -> list[StoredModel]:
    """Every model in the store, by name, without those whose model.json is damaged (see `damaged_models`)."""
    return [model for model in _read_all() if isinstance(model, StoredModel)]


def damaged_models() -> list[RunError]:
    """Return what is wrong with each model.json that cannot be read."""
    return [error for error in _read_all() if isinstance(error, RunError)]


def find_model(name: str) -> StoredModel | None:
    """Return the model of that name, or None.

    Raises UsageError when its files are gone, RunError for a damaged model.json.
    """
    folder = store() / name
    if not NAME.fullmatch(name) or not (folder / "model.json").is_file():
        return None
    model = _read(folder)
    if not model.path.exists():
        raise UsageError(f"the files of {name!r} are gone from {model.path}", f"run `settle pull {model.origin}` again")
    return model


def linked_model(path: Path) -> StoredModel | None:
    """Return the model of the store whose file or folder `path` is, under whatever name, or None."""
    return next((m for m in all_models() if m.path.exists() and path.exists() and m.path.samefile(path)), None)


def add_model(model: StoredModel) -> None:
    """Record a model whose files are already in place. Raises ResourceError when the store cannot be written."""
    try:
        model.folder.mkdir(parents=True, exist_ok=True)
        inside = model.path.is_relative_to(model.folder)
        path = model.path.relative_to(model.folder) if inside else model.path.absolute()
        write_json(model.folder / "model.json", asdict(model) | {"path": str(path)})
    except OSError as e:
        raise cannot_write(model.folder, e) from None


def model_name(wanted: str) -> str:
    """`wanted` (a hub id, a file's stem …) cleaned to a usable name: lower case, the last part of a path."""
    last = re.split(r"[/\\]", wanted.rstrip("/\\"))[-1].lower()
    return re.sub(r"[^a-z0-9._-]+", "-", last).strip("-._")[:64].rstrip("-._") or "model"


def stamp_of(path: Path) -> str:
    """Return number, sizes and latest time of a model's files: while the stamp is the same, so is the hash."""
    files = [p for p in path.iterdir() if p.is_file()] if path.is_dir() else [path]
    stats = [p.stat() for p in files]
    return f"{len(stats)}:{sum(s.st_size for s in stats)}:{max((s.st_mtime_ns for s in stats), default=0)}"


def _read_all() -> Iterator[StoredModel | RunError]:
    for folder in sorted(store().iterdir()) if store().is_dir() else []:
        if (folder / "model.json").is_file():
            try:
                yield _read(folder)
            except RunError as e:
                yield e


def _read(folder: Path) -> StoredModel:
    try:
        model = _STORED.validate_python(read_json(folder / "model.json"))
        # a path inside the folder is relative, so that a store can be moved
        return replace(model, name=folder.name, path=folder / model.path)
    except (RunError, ValueError):
        raise RunError(f"{folder / 'model.json'} is damaged", f"remove {folder} and pull it again") from None
