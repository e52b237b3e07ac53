"""The files of some folders that can be read as documents, and the others with the reason why not."""

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from settle.base.errors import DataError
from settle.base.run import home
from settle.documents.reader_pool import reader_of

_NOT_DOCUMENTS = {"node_modules", "__pycache__", "site-packages", "dist-packages"}
_ARCHIVES = {
    ".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".jar", ".war", ".whl", ".egg", ".deb",
    ".rpm", ".iso", ".cab",
}  # fmt: skip


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

    Raises DataError for a root that is not there, or a file that no reader knows.
    """
    seen: set[str] = set()
    for root in roots:
        if root.is_dir():
            files = _folder(root, left_out)
        elif root.exists():
            found = _file(root, root)
            if isinstance(found, str):
                raise DataError(f"{root.name} cannot be indexed: {found}", "point at a folder, or at another file")
            files = iter([found])
        else:
            raise DataError(f"there is no file or folder {str(root)!r}", "check the path")
        for found in files:
            if found.path not in seen:
                seen.add(found.path)
                yield found


def _folder(root: Path, left_out: LeftOut) -> Iterator[Found]:
    own = home().resolve()
    for where, folders, files in os.walk(root, onerror=lambda e: left_out.reasons.update(["folder cannot be opened"])):
        kept = []
        for name in sorted(folders):
            if name.startswith("."):
                left_out.reasons["hidden"] += 1
            elif name in _NOT_DOCUMENTS or Path(where, name, "pyvenv.cfg").exists():
                left_out.reasons["installed packages or caches"] += 1
            elif Path(where, name).is_symlink():
                left_out.reasons["links to folders"] += 1
            elif Path(where, name) == own:
                left_out.reasons["settle's own"] += 1
            else:
                kept.append(name)
        folders[:] = kept
        for name in sorted(files):
            found = "hidden" if name.startswith(".") else _file(Path(where, name), root)
            if isinstance(found, str):
                left_out.reasons[found] += 1
            else:
                yield found


def _file(path: Path, root: Path) -> Found | str:
    """A file, or why it is left out."""
    suffix = path.suffix.lower()
    if suffix in _ARCHIVES:
        return "archives: not opened"
    reader = reader_of(path.name)
    if reader is None:
        return f"no reader for {suffix or 'files without a suffix'}"
    try:
        status = path.stat()
    except OSError:
        return "gone or not to be looked at"
    if not stat.S_ISREG(status.st_mode):
        return "no regular file"
    return Found(str(path), str(root), status.st_size, status.st_mtime_ns, reader)


def sha256_of(path: str) -> bytes:
    """Of a file's bytes. Raises OSError."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").digest()
