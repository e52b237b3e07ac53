"""The files behind the inputs, and the hashes of their contents."""

import hashlib
import json
import shutil
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from settle.base.errors import UsageError
from settle.base.files import home, parse_json, write_atomic
from settle.data.ledger import Ledger, LedgerRecord
from settle.documents.readers import Reader
from settle.documents.walk import FoundFile, Walk

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

    def description(self) -> LedgerRecord:
        """Return what a ledger notes of the files: each of them, and all in one number."""
        files, hashes = self.files, self.hashes
        return {
            "sources": [
                {"name": f.name, "kind": row_kind(f), "bytes": f.size, "sha256": h}
                for f, h in zip(files, hashes, strict=True)
            ],
            "num_sources": len(files),
            "sources_bytes": sum(f.size for f in files),
            "sources_sha256": hashlib.sha256("".join(hashes).encode()).hexdigest(),
        }

    @property
    def identity(self) -> list[object]:
        """The part of a fingerprint that depends on the files, as JSON."""
        return [[[f.name, row_kind(f)] for f in self.files], self.hashes, len(self.train)]


def find_sources(inputs: Sequence[str], held_out_from: Path | None, workspace: Path, ledger: Ledger) -> Sources:
    """Return the files behind `inputs` and `held_out_from`. Raises as `find_files` does."""
    train = find_files(inputs, workspace, ledger)
    held_out = find_files([str(held_out_from)], workspace, ledger) if held_out_from else []
    return Sources(train, held_out, hash_files(train + held_out))


def find_files(inputs: Sequence[str], workspace: Path, ledger: Ledger) -> list[FoundFile]:
    """Return the files behind `inputs` (paths, folders, `-` for stdin, `stdlib`), in a fixed order.

    The files that are left out are noted in the ledger. Raises DataError for an input that does not exist or cannot be
    read, UsageError for one that needs a package which is not installed. Stdin is copied into `workspace`.
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


def row_kind(file: FoundFile) -> str:
    """Return the name of the way in which a file's rows are made."""
    return Reader.part(file.reader).row_kind()


def hash_files(files: Sequence[FoundFile]) -> list[str]:
    """Return the sha256 of each file's bytes, remembered by (path, size, time of change): a second run is instant."""
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


def _can_be_read(file: FoundFile, ledger: Ledger) -> bool:
    """Return whether the packages that a file needs are installed; in a folder, a file that misses one is skipped."""
    package = Reader.part(file.reader).missing_package()
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
