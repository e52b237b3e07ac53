"""What several workers of one test run need is made by the first of them, in a folder that they share."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

_own = tempfile.TemporaryDirectory()  # where nothing is shared, as in a child process
shared = Path(_own.name)


def share(folder: Path) -> None:
    """Take `folder` for what is made from now on."""
    global shared
    shared = folder


def made(name: str, make: Callable[[Path], None]) -> Path:
    """The file or folder of that name, which `make` writes unless it is there; a failed one is made again."""
    path = shared / name
    with FileLock(shared / f"{name}.lock"):
        if not path.exists():
            part = path.with_name(f"part-{name}")
            make(part)
            part.rename(path)
    return path
