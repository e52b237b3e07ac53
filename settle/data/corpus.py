"""Corpora under $SETTLE_HOME/tokens: the files behind them, built in a temporary folder, published by a rename.

A corpus is known by the fingerprint of its input and its settings; one that was made before is opened.
"""

import contextlib
import hashlib
import json
import secrets
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypedDict, TypeVar

from filelock import FileLock, Timeout

from settle.base.errors import FULL_DISK, ResourceError, SettleError, UsageError, cannot_write, no_room
from settle.base.files import fsync_folder, home, parse_json, write_atomic, write_json
from settle.base.python_command import extra_command
from settle.base.tokenizer import Tokenizer
from settle.documents.readers import Reader
from settle.documents.walk import FoundFile, Walk

_EXAMPLES = 3
_SHOWN = 100
_NOTED_FILES = 100
_PLACES = 20


LedgerRecord = dict[str, Any]  # a ledger as plain JSON, see `Ledger.as_dict`


SUMMARIZED = ("train", "selection", "held_out", "dropped", "mended", "skipped", "found", "found_at")  # what is shown


class ReasonCount(TypedDict):
    """How often a reason applied, and its first examples: where, and for some reasons the beginning of the text."""

    count: int
    examples: list[dict[str, str]]


@dataclass
class Ledger:
    """Counts per reason. A reason is a short phrase, the same for every row that it applies to.

    found, found_at: by kind, how many there are and where the first ones are. notes: further values for the record,
    plain JSON.
    """

    read: int = 0
    kept: int = 0
    kept_bytes: int = 0
    dropped: dict[str, ReasonCount] = field(default_factory=dict)
    mended: dict[str, ReasonCount] = field(default_factory=dict)
    skipped: dict[str, ReasonCount] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)
    found_at: dict[str, list[str]] = field(default_factory=dict)
    notes: LedgerRecord = field(default_factory=dict)
    omissions: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, where: str, text: str) -> None:
        """Count a row that is left out."""
        _count(self.dropped, reason, where, text)

    def mend(self, reason: str, where: str, text: str) -> None:
        """Count a row that stays, repaired."""
        _count(self.mended, reason, where, text)

    def skip(self, reason: str, where: str) -> None:
        """Count a file or folder that is not read."""
        _count(self.skipped, reason, where, "")

    def find(self, kind: str, count: int, where: str) -> None:
        """Count something worth knowing in a row that stays, such as e-mail addresses."""
        self.found[kind] = self.found.get(kind, 0) + count
        places = self.found_at.setdefault(kind, [])
        if len(places) < _PLACES and where not in places:
            places.append(where)

    def note_omission(self, file: FoundFile, note: str) -> None:
        """Record what a reader left out of a file, such as pages that are pictures."""
        if file.name in self.omissions or len(self.omissions) < _NOTED_FILES:
            self.omissions.setdefault(file.name, []).append(note)

    def summary(self) -> str:
        """Return the counts in short, for an error's text."""
        parts = [f"documents read: {self.read}"]
        parts += [f"dropped as {reason}: {n['count']}" for reason, n in self.dropped.items()]
        parts += [f"skipped as {reason}: {n['count']}" for reason, n in self.skipped.items()]
        return ", ".join(parts)

    def as_dict(self) -> LedgerRecord:
        """Return plain JSON values."""
        names = ("read", "kept", "kept_bytes", "dropped", "mended", "skipped", "found", "found_at")
        omissions = {"omissions": self.omissions} if self.omissions else {}
        return {name: getattr(self, name) for name in names} | omissions | self.notes


def _count(table: dict[str, ReasonCount], reason: str, where: str, text: str) -> None:
    entry = table.setdefault(reason, {"count": 0, "examples": []})
    entry["count"] += 1
    if len(entry["examples"]) < _EXAMPLES:
        shown = text[:_SHOWN] + ("…" if len(text) > _SHOWN else "")
        entry["examples"].append({"where": where} | ({"text": shown} if text else {}))


STDIN, STDLIB = "-", "stdlib"
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
    walk = Walk(ledger.skip, lambda what, path: ledger.find(what, 1, path), looks_inside=True)
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
    before = dict(known)
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
    if known != before:
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(memory, json.dumps(known))
    return hashes


def _can_be_read(file: FoundFile, ledger: Ledger) -> bool:
    """Return whether the packages that a file needs are installed; in a folder, a file that misses one is skipped."""
    package = Reader.part(file.reader).missing_package()
    if package is None:
        return True
    if file.path == file.root:
        raise UsageError(f"reading {file.name} needs {package}", extra_command("rag"))
    ledger.skip(f"needs {package}: {extra_command('rag')}", file.name)
    return False


def _not_of_the_library(path: Path, is_folder: bool) -> str | None:
    if is_folder:
        return "tests of the standard library" if path.name in _STDLIB_TESTS else None
    return None if path.suffix == ".py" else ""


def _stdin(workspace: Path) -> FoundFile:
    workspace.mkdir(parents=True, exist_ok=True)
    path = workspace / "stdin"
    with path.open("wb+") as f:
        shutil.copyfileobj(sys.stdin.buffer, f, 1 << 20)
        f.seek(0)
        head = f.read(8192).lstrip()
    reader = "jsonl" if head.startswith(b"{") and b'"' in head else "text"
    status = path.stat()
    return FoundFile(str(path), str(path), status.st_size, status.st_mtime_ns, reader)


T = TypeVar("T")
_FINGERPRINT = 32  # characters


@dataclass(frozen=True)
class CorpusBuilder:
    """The files of a corpus that may have to be made, the ledger of their rows, and a folder to work in."""

    sources: Sources
    ledger: Ledger
    work: Path

    @classmethod
    @contextlib.contextmanager
    def of(cls, inputs: Sequence[str], held_out_from: Path | None = None) -> Iterator[Self]:
        """Provide a builder for the files behind `inputs`. Raises as `find_files` does."""
        with workspace() as work:
            ledger = Ledger()
            yield cls(find_sources(inputs, held_out_from, work, ledger), ledger, work)

    @property
    def folder(self) -> Path:
        """The folder in which the corpus is built."""
        return self.work / "corpus"

    def stored_or_made(
        self, fingerprint: str, open_corpus: Callable[[Path], T], make: Callable[[], Sequence[str]]
    ) -> T:
        """Return the corpus of a fingerprint. make: builds it in `folder`, and returns the names of its files."""
        if (known := stored_corpus(fingerprint, open_corpus)) is not None:
            return known
        target = corpus_folder(fingerprint)
        shutil.rmtree(target, ignore_errors=True)  # a damaged one is made again
        self.ledger.notes |= self.sources.description()
        names = make()
        write_json(self.folder / "files.json", list(names))
        write_json(self.folder / "ledger.json", self.ledger.as_dict())
        try:
            self.folder.rename(target)
        except OSError:  # another process may have made the same one meanwhile: then its copy stays
            if not (target / "ledger.json").exists():
                raise
        fsync_folder(target.parent)
        return open_corpus(target)


def corpus_folder(fingerprint: str) -> Path:
    """Return where the corpus of that fingerprint lies."""
    return home() / "tokens" / fingerprint


def stored_corpus(fingerprint: str, open_corpus: Callable[[Path], T]) -> T | None:
    """Return the corpus of that fingerprint if it was made before, and is still there and undamaged."""
    folder = corpus_folder(fingerprint)
    if (folder / "ledger.json").exists():
        with contextlib.suppress(SettleError):
            return open_corpus(folder)
    return None


def fingerprint_of(content: Sequence[object], tokenizer: Tokenizer | None = None) -> str:
    """Return what a corpus is known by. content: all that decides what is made, as JSON."""
    digest = hashlib.sha256(json.dumps(content, default=str).encode())
    for entries in (tokenizer.tokens, tokenizer.merges) if tokenizer else ():
        digest.update("\n".join(entries).encode("utf-8", "replace"))
    return digest.hexdigest()[:_FINGERPRINT]


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """Provide a folder that is gone afterwards; what a killed process left is cleared away.

    A full disk becomes a ResourceError.
    """
    tokens = home() / "tokens"
    work = tokens / f".work-{secrets.token_hex(6)}"
    lock = FileLock(work.with_suffix(".lock"))
    try:
        tokens.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(tokens)
        lock.acquire()
        work.mkdir()
    except OSError as e:
        raise cannot_write(home(), e, "or set SETTLE_HOME to another folder") from None
    try:
        yield work
    except OSError as e:
        if e.errno not in FULL_DISK:
            raise
        raise disk_full(sum(f.stat().st_size for f in work.rglob("*") if f.is_file())) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
        lock.release()
        work.with_suffix(".lock").unlink(missing_ok=True)


def _clear_abandoned(tokens: Path) -> None:
    for path in tokens.glob(".work-*.lock"):
        lock = FileLock(path, timeout=0)
        with contextlib.suppress(Timeout), lock:
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink(missing_ok=True)


def disk_full(needed: int) -> ResourceError:
    """Return the error of a disk without room for `needed` bytes."""
    free = shutil.disk_usage(home()).free
    return no_room("this text", needed, free, home(), "or set SETTLE_HOME to a folder on another disk")
