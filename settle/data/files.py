"""Turns inputs into the files to read, and hashes their contents once."""

import contextlib
import hashlib
import json
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from settle.base.errors import SettleError, UsageError
from settle.base.files import home, parse_json, write_atomic
from settle.data.ledger import Ledger
from settle.documents.readers import Reader
from settle.documents.row_reader import missing_package
from settle.documents.walk import FoundFile, Walk

T = TypeVar("T")
STDIN, STDLIB = "-", "stdlib"
_INSTALL = "pip install 'settle-lm[rag]'"
_STDLIB_TESTS = ("test", "tests", "idle_test")
_JUST_WRITTEN_NS = 2_000_000_000


@dataclass(frozen=True)
class Sources:
    """The files of a corpus: those to train on, those to evaluate on, and the sha256 of each file's bytes."""

    train: list[FoundFile]
    held_out: list[FoundFile]
    hashes: list[str]

    @property
    def files(self) -> list[FoundFile]:
        """All of them, those to train on first."""
        return self.train + self.held_out

    @property
    def identity(self) -> list[object]:
        """The part of a fingerprint that depends on the files, as JSON."""
        return [[[f.name, row_format(f)] for f in self.files], self.hashes, len(self.train)]


def find_sources(inputs: Sequence[str], held_out_from: Path | None, workspace: Path, ledger: Ledger) -> Sources:
    """The files behind `inputs` and `held_out_from`. Raises as `find_files` does."""
    train = find_files(inputs, workspace, ledger)
    held_out = find_files([str(held_out_from)], workspace, ledger) if held_out_from else []
    return Sources(train, held_out, hash_files(train + held_out))


def corpus_folder(fingerprint: str) -> Path:
    """Where the corpus of that fingerprint lies."""
    return home() / "tokens" / fingerprint


def stored_corpus(fingerprint: str, open_corpus: Callable[[Path], T]) -> T | None:
    """The corpus of that fingerprint if it was made before, and is still there and undamaged."""
    folder = corpus_folder(fingerprint)
    if (folder / "ledger.json").exists():
        with contextlib.suppress(SettleError):
            return open_corpus(folder)
    return None


def find_files(inputs: Sequence[str], workspace: Path, ledger: Ledger) -> list[FoundFile]:
    """The files behind `inputs` (paths, folders, `-` for stdin, `stdlib`), in a fixed order; the others in the ledger.

    Raises DataError for an input that does not exist or cannot be read, UsageError for one that needs a package which
    is not installed. Stdin is copied into `workspace`.
    """
    files: list[FoundFile] = []
    walk = Walk(ledger.skip, looks_inside=True)
    for source in inputs:
        if source == STDIN:
            files.append(_stdin(workspace))
        elif source == STDLIB:
            library = Walk(ledger.skip, looks_inside=True, also_skipped=_not_of_the_library)
            files += library.files([Path(sysconfig.get_path("stdlib"))])
        else:
            files += (f for f in walk.files([Path(source).expanduser()]) if _can_be_read(f, ledger))
    return list({Path(f.path).resolve(): f for f in reversed(files)}.values())[::-1]


def row_format(file: FoundFile) -> str:
    """The name of the way in which the file's rows are made."""
    return Reader.part(file.reader).row_format or file.reader


def hash_files(files: Sequence[FoundFile]) -> list[str]:
    """The sha256 of each file's bytes, remembered by (path, size, time of change) so that a second run is instant."""
    memory = home() / "tokens" / "hashes.json"
    try:
        known: dict[str, list[int | str]] = parse_json(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    hashes: list[str] = []
    changed = False
    for file in files:
        path = Path(file.path)
        status = path.stat()
        key, stamp = str(path.resolve()), [status.st_size, status.st_mtime_ns]
        entry = known.get(key)
        if entry and entry[:2] == stamp:
            hashes.append(str(entry[2]))
            continue
        with path.open("rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        hashes.append(digest)
        # a file changed this very moment could change again within the clock's resolution
        if time.time_ns() - status.st_mtime_ns > _JUST_WRITTEN_NS:
            known[key] = [*stamp, digest]
            changed = True
    if changed:
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(memory, json.dumps(known))
    return hashes


def describe_sources(ledger: Ledger, sources: Sources) -> None:
    """Notes every file, and all of them in one number."""
    files, hashes = sources.files, sources.hashes
    ledger.notes["sources"] = [
        {"name": f.name, "kind": row_format(f), "bytes": f.size, "sha256": h}
        for f, h in zip(files, hashes, strict=True)
    ]
    ledger.notes["num_sources"] = len(files)
    ledger.notes["sources_bytes"] = sum(f.size for f in files)
    ledger.notes["sources_sha256"] = hashlib.sha256("".join(hashes).encode()).hexdigest()


def _can_be_read(file: FoundFile, ledger: Ledger) -> bool:
    """Whether the packages that a file needs are installed; in a folder, files are skipped for one that is missing."""
    package = missing_package(file)
    if package is None:
        return True
    if file.path == file.root:
        raise UsageError(f"reading {file.name} needs {package}", _INSTALL)
    ledger.skip(f"needs {package}: {_INSTALL}", file.name)
    return False


def _not_of_the_library(path: Path, is_folder: bool) -> str | None:
    if is_folder:
        return "tests of the standard library" if path.name in _STDLIB_TESTS else None
    return None if path.suffix == ".py" else ""


def _stdin(workspace: Path) -> FoundFile:
    workspace.mkdir(parents=True, exist_ok=True)
    path = workspace / "stdin"
    with path.open("wb") as f:
        shutil.copyfileobj(sys.stdin.buffer, f, 1 << 20)
    with path.open("rb") as f:
        head = f.read(8192).lstrip()
    reader = "jsonl" if head.startswith(b"{") and b'"' in head else "text"
    status = path.stat()
    return FoundFile(str(path), str(path), status.st_size, status.st_mtime_ns, reader)
