"""What differs between the folders and the catalogue, and what only cannot be seen now.

A file is taken for unchanged when its size and time are. Its bytes are hashed only where that decides something: the
size is the same and the time is not, or another of that size has gone. A document is let go when it is known to be
gone; where a disk is not mounted, a folder cannot be opened or the network is silent, it stays as it was.
"""

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from settle.base.event_log import Events
from settle.base.events import Progress
from settle.documents.reader_pool import reader_of
from settle.documents.walk import FoundFile, Walk, sha256_of
from settle.retrieve.index.catalogue import Catalogue, Known

UNSURE = -1  # in place of a file's time: look at its bytes again the next time
_TICK = 2_000_000_000  # ns: of the coarsest file system; what changes twice within it shows the same time after both
_EVERY = 1000  # files between two signs of life
_Stamp = tuple[int, int]  # bytes, ns


@dataclass
class Work:
    """What there is to do. new: to be read, and whether it is known already; moved: (old path, as it is now); gone:
    paths; unchanged: documents that stay as they were; failed: (path, why) of files that cannot be looked at; kept:
    (root, why) of roots that cannot; began: when it was looked, in ns.
    """

    began: int
    new: list[tuple[FoundFile, bool]] = field(default_factory=list)
    moved: list[tuple[str, Known]] = field(default_factory=list)
    touched: list[Known] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    unchanged: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    kept: list[tuple[str, str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def stamp(self, found: FoundFile) -> int:
        """The time to remember a file by: none where it may change once more without showing it."""
        return UNSURE if abs(self.began - found.changed) < _TICK else found.changed


def compare(catalogue: Catalogue, roots: Sequence[Path], events: Events) -> Work:
    """Walks the roots. Raises DataError for a root that is a file nothing can read."""
    work = Work(time.time_ns())
    stamps = catalogue.stamps()
    hidden = unseen(roots, stamps)
    work.kept = [(str(root), why) for root, why in hidden.items()]
    differing: list[tuple[FoundFile, _Stamp | None]] = []
    walk = Walk(lambda reason, path: work.left_out.update([reason]))
    for number, found in enumerate(walk.files(root for root in roots if root not in hidden)):
        if number and number % _EVERY == 0:
            events.emit(Progress(what="look", done=number, total=None, unit="files"))
        before = stamps.pop(found.path, None)
        if before == (found.size, found.changed):
            work.unchanged += 1
        else:
            differing.append((found, before))
    _look_for_lost(stamps, roots, hidden, work)
    _sort(differing, catalogue, work)
    return work


def _look_for_lost(lost: Iterable[str], roots: Sequence[Path], hidden: Iterable[Path], work: Work) -> None:
    """Documents that were not found below the roots: gone, or out of sight."""
    for path in lost:
        if not _below(path, roots):
            work.gone.append(path)
        elif _below(path, hidden):
            work.unchanged += 1
        elif why := _out_of_reach(Path(path)):
            work.failed.append((path, why))
            work.unchanged += 1
        else:
            work.gone.append(path)


def _sort(differing: Sequence[tuple[FoundFile, _Stamp | None]], catalogue: Catalogue, work: Work) -> None:
    """New, changed, moved, or only touched."""
    known = catalogue.known_at([found.path for found, before in differing if before and before[0] == found.size])
    left: dict[tuple[bytes, str | None], list[Known]] = defaultdict(list)
    for gone in catalogue.known_at(work.gone).values():
        if gone.sha256:
            left[gone.sha256, reader_of(Path(gone.path).name)].append(gone)
    sizes = {gone.size for some in left.values() for gone in some}
    for found, before in differing:
        old = known.get(found.path)
        try:
            found.path.encode()
            sha = sha256_of(found.path) if old or (before is None and found.size in sizes) else _opened(found.path)
        except UnicodeEncodeError:
            work.left_out["their names are not Unicode"] += 1
            continue
        except OSError as e:
            work.failed.append((found.path, f"cannot be read: {e.strerror}"))
            work.unchanged += before is not None
            continue
        now = Known(found.path, found.size, work.stamp(found), sha)
        if old and old.sha256 == sha and (not old.error or old.changed == UNSURE):
            work.touched.append(now)
            work.unchanged += 1
        elif before is None and (same := left.get((sha, found.reader))):
            work.moved.append(_moved(same.pop(), now))
        else:
            work.new.append((found, before is not None))
    moved = {path for path, _ in work.moved}
    work.gone = [path for path in work.gone if path not in moved]


def _moved(old: Known, now: Known) -> tuple[str, Known]:
    """Where a document was, and as it is now. One without a heading is called by its file's name."""
    title = Path(now.path).name if old.title == Path(old.path).name else old.title
    return old.path, replace(now, title=title)


def _opened(path: str) -> bytes:
    """No hash. Raises OSError where it cannot be opened."""
    with open(path, "rb"):
        return b""


def unseen(roots: Sequence[Path], known: Iterable[str]) -> dict[Path, str]:
    """The roots that nothing can be seen of now, with the reason. known: paths of documents."""
    return {root: why for root in roots if (why := _unseen(root, known))}


def _unseen(root: Path, known: Iterable[str]) -> str:
    """Why nothing below a root can be seen, or "". An empty folder may be one that no disk is mounted at."""
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
    return "it is empty" if any(_below(path, [root]) for path in known) else ""


def _out_of_reach(path: Path) -> str:
    """Why a file that was not found may be there all the same, or ""."""
    try:
        path.stat()
        shut = next((f for f in path.parents if not os.access(f, os.R_OK | os.X_OK)), None)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as e:
        return f"cannot be looked at: {e.strerror}"
    return f"the folder {shut} cannot be opened" if shut else ""


def _below(path: str, roots: Iterable[Path]) -> bool:
    return any(path == (top := str(root)) or path.startswith(top.rstrip(os.sep) + os.sep) for root in roots)
