"""The files of some folders that can be read as documents, and the others with the reason why not."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from settle.base.errors import DataError
from settle.retrieve.reading import reader_of

_NOT_DOCUMENTS = {"node_modules", "__pycache__", "site-packages", "dist-packages"}


@dataclass(frozen=True)
class Found:
    """A file. root: what was pointed at; size: bytes; changed: its time in nanoseconds; reader: which one reads it."""

    path: str
    root: str
    size: int
    changed: int
    reader: str


@dataclass
class LeftOut:
    """What was passed over: how often for each reason."""

    reasons: Counter[str] = field(default_factory=Counter)


def walk(roots: list[Path], left_out: LeftOut) -> Iterator[Found]:
    """Files below `roots`, each once, in the order of their paths in each. A file that is pointed at must be readable.

    Raises DataError for a root that is not there.
    """
    seen: set[str] = set()
    for root in roots:
        if root.is_file():
            found = _file(root, root)
            if found is None:
                raise DataError(f"no reader knows {root.name}", f"its kind, {root.suffix or 'no suffix'}, is not read")
            files: Iterator[Found] = iter([found])
        elif root.is_dir():
            files = _folder(root, left_out)
        else:
            raise DataError(f"there is no file or folder {str(root)!r}", "check the path")
        for found in files:
            if found.path not in seen:
                seen.add(found.path)
                yield found


def _folder(root: Path, left_out: LeftOut) -> Iterator[Found]:
    for where, folders, files in os.walk(root, onerror=lambda e: left_out.reasons.update(["folder cannot be opened"])):
        kept = []
        for name in sorted(folders):
            if name.startswith("."):
                left_out.reasons["hidden"] += 1
            elif name in _NOT_DOCUMENTS or Path(where, name, "pyvenv.cfg").exists():
                left_out.reasons["installed packages or caches"] += 1
            elif not Path(where, name).is_symlink():
                kept.append(name)
        folders[:] = kept
        for name in sorted(files):
            if name.startswith("."):
                left_out.reasons["hidden"] += 1
                continue
            found = _file(Path(where, name), root)
            if found:
                yield found
            else:
                left_out.reasons[f"no reader for {Path(name).suffix.lower() or 'files without a suffix'}"] += 1


def _file(path: Path, root: Path) -> Found | None:
    reader = reader_of(path.suffix.lower())
    if reader is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    return Found(str(path), str(root), status.st_size, status.st_mtime_ns, reader)


def sha256_of(path: str) -> bytes:
    """Of a file's bytes. Raises OSError."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").digest()
