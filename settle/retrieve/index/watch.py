"""Follows the folders of a collection: what changes in them is indexed a moment later."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from settle.base.errors import ResourceError, SettleError, UsageError
from settle.base.event_log import Events
from settle.base.events import Warn
from settle.base.run import home
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.update_index import Report, update

_TICK = 2.0  # seconds after which roots are looked at that the system does not tell about
_DEBOUNCE = 1.6  # seconds of changes that are taken together at most


def follow(collection: Collection, events: Events, told: Callable[[Report], None]) -> NoReturn:
    """Updates the collection whenever something changes, and hands each report to `told`; ends with KeyboardInterrupt.

    What cannot be done now, such as on a full disk or while another process indexes, is said once and tried again.
    Raises UsageError when the library is missing, ResourceError when the system cannot watch so many folders.
    """
    said = ""
    while True:
        roots = collection.roots
        looks, due = _looks(roots), True  # what happened before the watching began
        for changed in _changes([root for root in roots if root.is_dir()]):
            if due or changed:
                try:
                    told(update(collection, events))
                    due, said = False, ""
                except SettleError as e:
                    due = True
                    if e.what != said:
                        events.emit(Warn(text=f"{e.what}; it is tried again"))
                        said = e.what
            if collection.roots != roots or _looks(roots) != looks:
                break


def _looks(roots: Sequence[Path]) -> list[Any]:
    """What can be seen of each root itself: whether a folder is there, and a file's size and time."""
    files = {root: root.stat() for root in roots if root.is_file()}
    return [(f.st_size, f.st_mtime_ns) if (f := files.get(root)) else root.is_dir() for root in roots]


def _changes(folders: Sequence[Path]) -> Iterator[bool]:
    """Whether something has changed below the folders, at every change and at every tick."""
    try:
        from watchfiles import DefaultFilter, watch
    except ImportError:
        raise UsageError("following folders needs watchfiles", "pip install 'settle-lm[rag]'") from None
    if not folders:  # files alone, or disks that are not mounted
        while True:
            time.sleep(_TICK)
            yield False
    usual = DefaultFilter(ignore_paths=[home()])

    def counts(change: Any, path: str) -> bool:
        below = next((Path(path).relative_to(f) for f in folders if Path(path).is_relative_to(f)), Path())
        return usual(change, path) and not any(part.startswith(".") for part in below.parts)

    try:
        yield from map(
            bool,
            watch(
                *folders,
                watch_filter=counts,
                debounce=int(_DEBOUNCE * 1000),
                rust_timeout=int(_TICK * 1000),
                yield_on_timeout=True,
                ignore_permission_denied=True,
            ),
        )
    except OSError as e:
        fix = "follow fewer folders, or allow the system to watch more of them (fs.inotify.max_user_watches)"
        raise ResourceError(f"the folders cannot be watched: {e}", fix) from None
