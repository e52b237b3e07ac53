"""The differences between the folders and the catalogue, and what merely cannot be seen now.

A file counts as unchanged when its size and its modification time are. Its bytes are hashed only where that decides
something: the size is the same and the time is not, or another file of that size has gone. A document is removed only
when it is known to be gone; where a disk is not mounted, a folder cannot be opened or the network is silent, it stays.
"""

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from settle.base.event_log import Events
from settle.base.events import Progress
from settle.documents.readers import reader_of
from settle.documents.walk import FoundFile, Walk, path_text, sha256_of
from settle.retrieve.index.catalogue import Catalogue, DocumentRecord

UNSURE = -1  # in place of a file's time: its bytes are compared again the next time
_COARSEST_TICK = 2_000_000_000  # ns of a file system's clock: two changes within one tick show the same time
_PROGRESS_EVERY = 1000  # files
MOST_NAMED = 3  # files that are named for each reason to leave one out
_Stamp = tuple[int, int]  # bytes, ns


@dataclass
class Changes:
    """The differences that an update has to bring into the catalogue."""

    began: int  # when the walk began, in ns
    new: list[tuple[FoundFile, bool]] = field(default_factory=list)  # to read, and whether the catalogue knows them
    moved: list[tuple[str, DocumentRecord]] = field(default_factory=list)  # old path, record of now
    touched: list[DocumentRecord] = field(default_factory=list)  # of files with another time and the same content
    gone: list[str] = field(default_factory=list)  # paths
    unchanged: int = 0  # number of documents
    failed: list[tuple[str, str]] = field(default_factory=list)  # path, why it cannot be examined
    kept: list[tuple[str, str]] = field(default_factory=list)  # root, why it cannot be examined
    left_out: Counter[str] = field(default_factory=Counter)  # number of files by the reason that they are not read
    left_out_paths: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # the first of them

    def leave_out(self, reason: str, path: str) -> None:
        """Count a file that is not a document, and keep its name while there are few for this reason."""
        self.left_out[reason] += 1
        if self.left_out[reason] <= MOST_NAMED:
            self.left_out_paths[reason].append(path)

    def stamp(self, file: FoundFile) -> int:
        """Return the time to remember a file by: UNSURE where it may change once more without showing it."""
        return UNSURE if abs(self.began - file.changed) < _COARSEST_TICK else file.changed


def find_changes(catalogue: Catalogue, roots: Sequence[Path], events: Events) -> Changes:
    """Walk the roots, and return what changed. Raises DataError for a root that is a file no reader knows."""
    changes = Changes(time.time_ns())
    stamps = catalogue.documents.stamps()
    hidden = unseen(roots, stamps)
    changes.kept = [(str(root), why) for root, why in hidden.items()]
    differing: list[tuple[FoundFile, _Stamp | None]] = []
    walk = Walk(changes.leave_out)
    for number, file in enumerate(walk.files(root for root in roots if root not in hidden)):
        if number and number % _PROGRESS_EVERY == 0:
            events.emit(Progress(what="look", done=number, total=None, unit="files"))
        before = stamps.pop(file.text, None)
        if before == (file.size, file.changed):
            changes.unchanged += 1
        else:
            differing.append((file, before))
    _sort_missing(stamps, roots, hidden, changes)
    _sort_differing(differing, catalogue, changes)
    return changes


def _sort_missing(missing: Iterable[str], roots: Sequence[Path], hidden: Iterable[Path], changes: Changes) -> None:
    """Sort the documents that were not found below the roots: gone, or out of sight."""
    for path in missing:
        if not _is_below(path, roots):
            changes.gone.append(path)
        elif _is_below(path, hidden):
            changes.unchanged += 1
        elif why := _out_of_reach(Path(path)):
            changes.failed.append((path, why))
            changes.unchanged += 1
        else:
            changes.gone.append(path)


def _sort_differing(
    differing: Sequence[tuple[FoundFile, _Stamp | None]], catalogue: Catalogue, changes: Changes
) -> None:
    """Sort the files whose stamp is not the known one: new, changed, moved, or only touched."""
    same_size = [file.text for file, before in differing if before and before[0] == file.size]
    known = catalogue.documents.at(same_size)
    missing: dict[tuple[bytes, str | None], list[DocumentRecord]] = defaultdict(list)
    for record in catalogue.documents.at(changes.gone).values():
        if record.sha256:
            missing[record.sha256, reader_of(Path(record.path).name)].append(record)
    sizes = {record.size for records in missing.values() for record in records}
    for file, before in differing:
        old = known.get(file.text)
        try:
            is_hashed = old or (before is None and file.size in sizes)
            sha = sha256_of(file.path) if is_hashed else _check_readable(file.path)
        except OSError as e:
            changes.failed.append((file.text, f"cannot be read: {e.strerror}"))
            changes.unchanged += before is not None
            continue
        now = DocumentRecord(file.text, file.size, changes.stamp(file), sha)
        if old and old.sha256 == sha and (not old.error or old.changed == UNSURE):
            changes.touched.append(now)
            changes.unchanged += 1
        elif before is None and (same := missing.get((sha, file.reader))):
            changes.moved.append(_moved(same.pop(), now))
        else:
            changes.new.append((file, before is not None))
    moved = {path for path, _ in changes.moved}
    changes.gone = [path for path in changes.gone if path not in moved]


def _moved(old: DocumentRecord, now: DocumentRecord) -> tuple[str, DocumentRecord]:
    """Return the old path of a document, and its record of now: without a heading, its title is its file's name."""
    title = Path(now.path).name if old.title == Path(old.path).name else old.title
    return old.path, replace(now, title=title)


def _check_readable(path: str) -> bytes:
    """Return no hash. Raises OSError where the file cannot be opened."""
    with open(path, "rb"):
        return b""


def unseen(roots: Sequence[Path], known: Iterable[str]) -> dict[Path, str]:
    """Return the roots below which nothing can be seen now, with the reason. known: paths of documents."""
    return {root: why for root in roots if (why := _unseen(root, known))}


def _unseen(root: Path, known: Iterable[str]) -> str:
    """Return why nothing below a root can be seen, or "". An empty folder may be a mount point without its disk."""
    try:
        if root.is_file():
            return ""
        with os.scandir(root) as inside:
            if next(inside, None):
                return ""
    except FileNotFoundError:
        return "it is not there"
    except OSError as e:
        return f"it cannot be opened: {e.strerror}"
    return "it is empty" if any(_is_below(path, [root]) for path in known) else ""


def _out_of_reach(path: Path) -> str:
    """Return why a file that was not found may exist all the same, or ""."""
    try:
        path.stat()
        shut = next((f for f in path.parents if not os.access(f, os.R_OK | os.X_OK)), None)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as e:
        return f"cannot be examined: {e.strerror}"
    return f"the folder {shut} cannot be opened" if shut else ""


def _is_below(path: str, roots: Iterable[Path]) -> bool:
    return any(path == (top := path_text(str(root))) or path.startswith(top.rstrip(os.sep) + os.sep) for root in roots)
