"""Corpora under $SETTLE_HOME/tokens: built in a temporary folder, published by a rename, and found again.

A corpus is known by the fingerprint of its input and its settings; one that was made before is opened.
"""

import contextlib
import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from filelock import FileLock, Timeout

from settle.base.errors import FULL_DISK, ResourceError, SettleError, cannot_write, no_room
from settle.base.files import fsync_folder, home, write_json
from settle.base.tokenizer import Tokenizer
from settle.data.files import Sources, find_sources
from settle.data.ledger import Ledger

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
        _publish(self.folder, target)
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


def _publish(finished: Path, folder: Path) -> None:
    """Rename a corpus into place; where another process made the same one meanwhile, its copy stays."""
    try:
        finished.rename(folder)
    except OSError:
        if not (folder / "ledger.json").exists():
            raise
    fsync_folder(folder.parent)


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
