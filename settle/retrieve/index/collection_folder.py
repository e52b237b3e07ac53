"""The folders of the collections on this machine, and which version of each counts.

    $SETTLE_HOME/collections/<name>/<number>/    the highest number counts; `.<number>.part` is being made

A collection that is rebuilt fills another folder beside the old one; renaming that folder makes it the one that counts.
"""

from pathlib import Path

from settle.base.files import fsync_folder, home
from settle.base.run import WorkFolder

CATALOGUE = "catalogue.sqlite"  # a version without one does not count


class CollectionFolder(WorkFolder):
    """The folder of one collection, whether it exists or not; one process at a time changes it."""

    lock_file = "lock"

    def __init__(self, name: str) -> None:
        super().__init__(home() / "collections" / name, name, f"indexing {name!r}")

    def versions(self) -> list[Path]:
        """Return versions that count or have counted, the oldest first."""
        return sorted(self.path.glob("[0-9]*"), key=_number)

    def unfinished(self) -> list[Path]:
        """Return versions that were never published."""
        return list(self.path.glob(".*.part"))

    def current(self) -> Path | None:
        """Return the version that counts, or None when there is no such collection."""
        return next((p for p in reversed(self.versions()) if (p / CATALOGUE).is_file()), None)

    def next_version(self) -> Path:
        """Return where the version after the current one is made, until it is published."""
        current = self.current()
        return self.path / f".{_number(current) + 1 if current else 1}.part"

    def publish(self, version: Path) -> None:
        """Make this version the current one."""
        version.rename(self.path / str(_number(version)))
        fsync_folder(self.path)


def collection_names() -> list[str]:
    """Return the collections of this machine."""
    folder = home() / "collections"
    return sorted(p.name for p in folder.iterdir() if CollectionFolder(p.name).current()) if folder.is_dir() else []


def _number(version: Path) -> int:
    return int(version.name.removeprefix(".").removesuffix(".part"))
