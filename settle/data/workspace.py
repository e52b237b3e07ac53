"""A temporary folder to build stores in, and the rename that publishes one of them."""

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from settle.base.errors import FULL_DISK, ResourceError, cannot_write, no_room
from settle.base.files import fsync_folder, home


def publish(finished: Path, folder: Path) -> None:
    """Rename into place; where another process made the same corpus meanwhile, its copy stays."""
    try:
        finished.rename(folder)
    except OSError:
        if not (folder / "ledger.json").exists():
            raise
    fsync_folder(folder.parent)


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """A folder that is gone afterwards, whatever happens; what a killed process left is cleared away here.

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
    """The error of a disk without room for `needed` bytes."""
    free = shutil.disk_usage(home()).free
    return no_room("this text", needed, free, home(), "or set SETTLE_HOME to a folder on another disk")
