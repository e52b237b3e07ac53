"""Follows the folders of a collection: what changes in them is indexed a moment later."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from settle.base.errors import ResourceError, SettleError, UsageError
from settle.base.event_log import Events
from settle.base.events import Warn
from settle.base.files import home
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.update_index import Report, update

if TYPE_CHECKING:
    from watchfiles import Change

_TICK_SECONDS = 2.0  # after which roots are examined that the system sends no notice of
_DEBOUNCE_SECONDS = 1.6  # changes within this time are taken together


def follow(collection: Collection, events: Events, on_report: Callable[[Report], None]) -> NoReturn:
    """Updates the collection whenever something changes, and passes each report on; ends with KeyboardInterrupt.

    What cannot be done now, as on a full disk or while another process indexes, is reported once and tried again.
    Raises UsageError when the library is missing, ResourceError when the system cannot watch so many folders.
    """
    last_error = ""
    while True:
        roots = collection.roots
        states, is_due = _states(roots), True  # what happened before the watch began
        for has_changed in _changes([root for root in roots if root.is_dir()]):
            if is_due or has_changed:
                try:
                    on_report(update(collection, events))
                    is_due, last_error = False, ""
                except SettleError as e:
                    is_due = True
                    if e.what != last_error:
                        events.emit(Warn(text=f"{e.what}; trying again"))
                        last_error = e.what
            if collection.roots != roots or _states(roots) != states:
                break


def _states(roots: Sequence[Path]) -> list[bool | tuple[int, int]]:
    """The state of each root itself: whether a folder exists, or the size and time of a file."""
    stats = {root: root.stat() for root in roots if root.is_file()}
    return [(s.st_size, s.st_mtime_ns) if (s := stats.get(root)) else root.is_dir() for root in roots]


def _changes(folders: Sequence[Path]) -> Iterator[bool]:
    """Whether something has changed below the folders, at every change and at every tick."""
    try:
        from watchfiles import DefaultFilter, watch
    except ImportError:
        raise UsageError("following folders needs watchfiles", "pip install 'settle-lm[rag]'") from None
    if not folders:  # only files, or disks that are not mounted
        while True:
            time.sleep(_TICK_SECONDS)
            yield False
    default_filter = DefaultFilter(ignore_paths=[home()])

    def is_relevant(change: "Change", path: str) -> bool:
        below = next((Path(path).relative_to(f) for f in folders if Path(path).is_relative_to(f)), Path())
        return default_filter(change, path) and not any(part.startswith(".") for part in below.parts)

    try:
        yield from map(
            bool,
            watch(
                *folders,
                watch_filter=is_relevant,
                debounce=int(_DEBOUNCE_SECONDS * 1000),
                rust_timeout=int(_TICK_SECONDS * 1000),
                yield_on_timeout=True,
                ignore_permission_denied=True,
            ),
        )
    except OSError as e:
        fix = "follow fewer folders, or allow the system to watch more of them (fs.inotify.max_user_watches)"
        raise ResourceError(f"the folders cannot be watched: {e}", fix) from None
