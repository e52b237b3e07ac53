"""What a person points at → the files to read: folders walked, kinds recognised, contents hashed once."""

import gzip
import hashlib
import json
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from settle.base.errors import DataError
from settle.base.registry import part, part_names
from settle.base.run import home, write_atomic
from settle.data.ledger import Ledger
from settle.data.sources import Skip, Source, is_binary

STDIN, STDLIB = "-", "stdlib"
_NOT_TEXT_FOLDERS = {"node_modules", "__pycache__", "site-packages", "dist-packages"}
_COMPRESSIONS = (".gz", ".zst")
_JUST_WRITTEN_NS = 2_000_000_000


@dataclass(frozen=True)
class InputFile:
    """One file to read. name: as shown to people; kind: the source that reads it; compression: '', '.gz' or '.zst'."""

    path: Path
    name: str
    kind: str
    compression: str
    size: int

    def open(self) -> BinaryIO:
        """The uncompressed bytes."""
        if self.compression == ".gz":
            return gzip.open(self.path, "rb")  # type: ignore[return-value]
        if self.compression == ".zst":
            import zstandard

            raw = self.path.open("rb")
            return zstandard.ZstdDecompressor().stream_reader(raw, closefd=True, read_across_frames=True)  # type: ignore[return-value]
        return self.path.open("rb")

    def source(self, settings: dict[str, Any]) -> Source:
        """The part that reads it, given those of the settings that it has."""
        kind = part("data/sources", self.kind)
        return kind(**{k: v for k, v in settings.items() if k in kind.model_fields})  # type: ignore[return-value]


def find_files(inputs: list[str], workspace: Path, ledger: Ledger) -> list[InputFile]:
    """The files behind `inputs` (paths, folders, `-` for stdin, `stdlib`), in a fixed order; the others in the ledger.

    Raises DataError for an input that does not exist or cannot be read. Stdin is copied into `workspace`.
    """
    files: list[InputFile] = []
    for given in inputs:
        if given == STDIN:
            files.append(_stdin(workspace))
            continue
        path = Path(sysconfig.get_path("stdlib")) if given == STDLIB else Path(given).expanduser()
        if path.is_dir():
            files += _walk(path, ledger, only=".py" if given == STDLIB else None)
        elif path.is_file():
            try:
                files.append(_file(path, path.name))
            except Skip as e:
                raise DataError(
                    f"{given} is no text: {e}", "give text, or a folder: what is no text there is left out"
                ) from None
        else:
            raise DataError(f"there is no file or folder {given!r}", "check the path")
    return list({f.path.resolve(): f for f in reversed(files)}.values())[::-1]


def hash_files(files: list[InputFile]) -> list[str]:
    """The sha256 of each file's bytes, remembered by (path, size, time of change) so that a second run is instant."""
    memory = home() / "tokens" / "hashes.json"
    try:
        known: dict[str, list[Any]] = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    hashes, changed = [], False
    for file in files:
        status = file.path.stat()
        key, stamp = str(file.path.resolve()), [status.st_size, status.st_mtime_ns]
        entry = known.get(key)
        if entry and entry[:2] == stamp:
            hashes.append(entry[2])
            continue
        with file.path.open("rb") as f:
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


def describe_files(ledger: Ledger, files: list[InputFile], hashes: list[str]) -> None:
    """Note every file, and all of them in one number."""
    ledger.notes["sources"] = [
        {"name": f.name, "kind": f.kind, "bytes": f.size, "sha256": h} for f, h in zip(files, hashes, strict=True)
    ]
    ledger.notes["num_sources"] = len(files)
    ledger.notes["sources_bytes"] = sum(f.size for f in files)
    ledger.notes["sources_sha256"] = hashlib.sha256("".join(hashes).encode()).hexdigest()


def _walk(folder: Path, ledger: Ledger, only: str | None) -> Iterator[InputFile]:
    for where, folders, names in os.walk(folder, onerror=None):
        here = Path(where)
        kept = []
        for name in sorted(folders):
            reason = _folder_left_out(here / name, name, only)
            if reason:
                ledger.skip(reason, str((here / name).relative_to(folder)))
            else:
                kept.append(name)
        folders[:] = kept
        for name in sorted(names):
            path = here / name
            shown = str(path.relative_to(folder))
            if only and path.suffix != only:
                continue
            reason = _file_left_out(path, name)
            if reason:
                ledger.skip(reason, shown)
                continue
            try:
                yield _file(path, shown)
            except (Skip, DataError) as e:
                ledger.skip(str(e) if isinstance(e, Skip) else "cannot be read", shown)


def _folder_left_out(path: Path, name: str, only: str | None) -> str | None:
    if name.startswith("."):
        return "hidden or version control"
    if name in _NOT_TEXT_FOLDERS or (path / "pyvenv.cfg").exists():
        return "installed packages or caches"
    if path.is_symlink():
        return "a link to a folder"
    if only and name in ("test", "tests", "idle_test"):
        return "tests of the standard library"
    return None


def _file_left_out(path: Path, name: str) -> str | None:
    if name.startswith("."):
        return "hidden or version control"
    if not path.is_file():
        return "not a regular file"
    return None


def _file(path: Path, shown: str) -> InputFile:
    """Recognises a file by its suffix, or by its first bytes when the suffix is not known."""
    suffixes = [s.lower() for s in path.suffixes[-2:]]
    compression = suffixes.pop() if suffixes and suffixes[-1] in _COMPRESSIONS else ""
    suffix = suffixes[-1] if suffixes else ""
    kind = next((k for k in part_names("data/sources") if suffix and suffix in _suffixes(k)), None)
    try:
        size = path.stat().st_size
        if kind is None:
            probe = InputFile(path, shown, "text", compression, size)
            with probe.open() as f:
                if is_binary(f.read(8192)):
                    raise Skip("binary data")
            kind = "text"
        with path.open("rb"):
            pass
    except PermissionError:
        raise DataError(f"{shown} cannot be read", "you have no permission to read it") from None
    except (OSError, EOFError) as e:
        raise DataError(f"{shown} cannot be read: {e}", "check the file") from None
    return InputFile(path, shown, kind, compression, size)


def _suffixes(kind: str) -> tuple[str, ...]:
    return part("data/sources", kind).suffixes  # type: ignore[attr-defined, no-any-return]


def _stdin(workspace: Path) -> InputFile:
    workspace.mkdir(parents=True, exist_ok=True)
    path = workspace / "stdin"
    with path.open("wb") as f:
        shutil.copyfileobj(sys.stdin.buffer, f, 1 << 20)
    with path.open("rb") as f:
        head = f.read(8192).lstrip()
    kind = "jsonl" if head.startswith(b"{") and b'"' in head else "text"
    return InputFile(path, "stdin", kind, "", path.stat().st_size)
