"""The files of a model that others trained: what they are, and their hash."""

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from settle.base.errors import FormatError, UsageError
from settle.base.models import Kind, StoredModel, all_models, find_model, stamp_of
from settle.base.run import Run

_PIECE = 1 << 20  # bytes read at a time


@dataclass(frozen=True)
class Source:
    """path: a GGUF file, or a folder in Hugging Face's layout. name: of the model, to show and to build names from.
    recorded: the sha256 that the store knows of the files as they are now, or "". origin: where the store has it from,
    or ""."""

    path: Path
    kind: Kind
    name: str
    recorded: str = ""
    origin: str = ""
    license: str = ""

    @cached_property
    def sha256(self) -> str:
        """Of the file; of a folder: of its files' names and hashes, those that decide how it behaves."""
        return self.recorded or hash_of(self.path)


def find_source(what: Path | str) -> Source:
    """The model's files by path, or by name: what a run made, or one of the store. Raises UsageError when there is
    none, naming those there are, and for an adapter, FormatError for a path that is not a model."""
    path, name = Path(what).expanduser(), str(what)
    run, stored = Run.named(name), find_model(name)
    if not is_model(path) and run is not None:
        return Source(run.whole_model(), "gguf", run.name, origin=f"run {run.name}")
    if not path.is_file() and stored is not None:
        return _of_store(stored)
    if path.is_dir() and not is_model(path):
        raise FormatError(f"there is no config.json in {path}", "give a folder in Hugging Face's layout, or a .gguf")
    if path.exists():
        linked = [model for model in all_models() if model.path.exists() and model.path.samefile(path)]
        if linked:
            return _of_store(linked[0])
        is_folder = path.is_dir()
        return Source(path, "safetensors" if is_folder else "gguf", path.resolve().name if is_folder else path.stem)
    made = [run.name for run in Run.all() if run.exported is not None]
    known = ", ".join(dict.fromkeys([model.name for model in all_models()] + made))
    fix = f"known: {known}; " if known else ""
    raise UsageError(f"there is no model {name!r}", fix + f"`settle pull {name}` gets one")


def is_model(path: Path) -> bool:
    """Whether a path can only mean the model there, and not a name: a file, or a folder in Hugging Face's layout."""
    return path.is_file() or (path / "config.json").is_file()


def wherever(what: str) -> str:
    """The same model or file, named so that it is found from any folder: a path becomes absolute, a name stays."""
    path = Path(what).expanduser()
    return str(path.absolute()) if is_model(path) else what


def _of_store(stored: StoredModel) -> Source:
    # hashing gigabytes takes seconds, so what was hashed once is believed until the files change
    recorded = stored.sha256 if stamp_of(stored.path) == stored.stamp else ""
    return Source(stored.path, stored.kind, stored.name, recorded, stored.origin, stored.license)


def hash_of(path: Path) -> str:
    """sha256 of a file, or of the names and hashes of a folder's weights, config and tokenizer."""
    if not path.is_dir():
        digest = sha256()
        with path.open("rb") as f:
            while piece := f.read(_PIECE):
                digest.update(piece)
        return digest.hexdigest()
    files = [p for p in path.iterdir() if p.suffix in (".safetensors", ".json", ".jinja", ".model") and p.is_file()]
    lines = [f"{p.name} {hash_of(p)}" for p in sorted(files)]
    return sha256("\n".join(lines).encode()).hexdigest()
