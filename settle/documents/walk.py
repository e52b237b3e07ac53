"""The files in folders that a reader knows, and the reason for each of the others why it is skipped."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from settle.base.errors import DataError, UsageError
from settle.base.files import home
from settle.base.visible import visible_line
from settle.documents.decode import COMPRESSIONS, damage_error, is_binary, markup, open_unpacked
from settle.documents.readers import reader_of

HIDDEN, NOT_REGULAR, UNREADABLE = "hidden or version control", "not a regular file", "cannot be read"
OUTSIDE = "a link to a file outside of the folder"
UNREADABLE_MARKUP = ("rich text (RTF)",)  # more marks than text
_INSTALLED = {"node_modules", "__pycache__", "site-packages", "dist-packages"}
_ARCHIVES = {
    ".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".jar", ".war", ".whl", ".egg", ".deb",
    ".rpm", ".iso", ".cab",
}  # fmt: skip
_HEAD = 8192  # bytes that show whether a file of an unknown kind is text

Skip = Callable[[str, str], None]  # called with the reason and the path below the root


def path_text(path: str) -> str:
    """Return a path as text; bytes that are not UTF-8 are written out, E9 as `\\xe9`."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")


@dataclass(frozen=True)
class FoundFile:
    """A file to read."""

    path: str
    root: str  # the folder or file that was given
    size: int  # bytes
    changed: int  # its time in nanoseconds
    reader: str  # the kind that reads it
    compression: str = ""  # or ".gz" or ".zst"

    @property
    def name(self) -> str:
        """The path below the root, as shown to people: bytes that are no text and control characters are signs."""
        return visible_line(os.path.relpath(self.path, self.root if self.path != self.root else Path(self.root).parent))

    @property
    def text(self) -> str:
        """The whole path as text, by which a catalogue knows the file."""
        return path_text(self.path)

    def open(self) -> BinaryIO:
        """Open the uncompressed bytes."""
        return open_unpacked(Path(self.path), self.compression)


@dataclass(frozen=True)
class Walk:
    """How folders are walked."""

    # called for each file or folder that is left out
    skip: Skip = lambda reason, path: None
    # called for each text that is read with the marks of a program that sets it
    note: Skip = lambda what, path: None
    # files are opened, to unpack .gz and .zst and to take those of an unknown kind as text where they look like it
    looks_inside: bool = False
    # a further reason to leave out a path (and whether it is a folder), or None; an empty one is not passed to `skip`
    also_skipped: Callable[[Path, bool], str | None] = lambda path, is_folder: None

    def files(self, roots: Iterable[Path]) -> Iterator[FoundFile]:
        """Yield files below `roots`, each once, in the order of their paths in each.

        Raises DataError for a root that is not there, or a file that cannot be read.
        """
        walked: set[str] = set()
        for root in roots:
            for file in self._below(root):
                if file.path not in walked:
                    walked.add(file.path)
                    yield file

    def _below(self, root: Path) -> Iterator[FoundFile]:
        try:
            is_folder, is_there = root.is_dir(), root.exists()
        except PermissionError as e:
            raise _closed(root, e) from None
        if is_folder:
            yield from self._folder(root)
        elif is_there:
            match self._file(root, root):
                case FoundFile() as file:
                    yield file
                case reason:
                    fix = "give another file, or a folder: other files in it are skipped"
                    raise DataError(f"{visible_line(root.name)} cannot be used: {reason}", fix)
        else:
            raise UsageError(f"there is no file or folder {str(root)!r}", "check the path")

    def _folder(self, root: Path) -> Iterator[FoundFile]:
        own = home().resolve()

        def leave(reason: str | None, path: Path) -> bool:
            if reason:
                self.skip(reason, visible_line(str(path.relative_to(root))))
            return reason is not None

        def unopened(error: OSError) -> None:
            folder = Path(error.filename or root)
            if folder == root:
                raise _closed(root, error)
            leave(f"folder cannot be opened: {error.strerror}", folder)

        for where, folders, names in os.walk(root, onerror=unopened):
            here = Path(where)
            folders[:] = [n for n in sorted(folders) if not leave(self._why_not_folder(here / n, own), here / n)]
            for path in (here / name for name in sorted(names)):
                reason = HIDDEN if path.name.startswith(".") else self.also_skipped(path, False)
                if leave(reason, path):
                    continue
                match self._file(path, root):
                    case FoundFile() as file:
                        yield file
                    case reason:
                        leave(reason, path)

    def _why_not_folder(self, path: Path, own: Path) -> str | None:
        if path.name.startswith("."):
            return HIDDEN
        if path.name in _INSTALLED or os.access(path / "pyvenv.cfg", os.F_OK):
            return "installed packages or caches"
        if path.is_symlink():
            return "a link to a folder"
        return "settle's own" if path == own else self.also_skipped(path, True)

    def _file(self, path: Path, root: Path) -> FoundFile | str:
        """Return a file, or the reason why it is skipped."""
        if path != root and _leads_outside(path, root):
            return OUTSIDE
        try:
            status = path.stat()
        except FileNotFoundError:
            return NOT_REGULAR  # a link that leads nowhere
        except OSError:
            return UNREADABLE
        if not stat.S_ISREG(status.st_mode):
            return NOT_REGULAR
        suffix = path.suffix.lower()
        compression = suffix if self.looks_inside and suffix in COMPRESSIONS else ""
        if suffix in _ARCHIVES and not compression:
            return "archives: not opened"
        reader = reader_of(path.stem if compression else path.name)
        if self.looks_inside:
            try:
                with open_unpacked(path, compression if reader is None else "") as file:
                    head = file.read(_HEAD) if reader in (None, "text") else b""
                    if reader is None and is_binary(head):
                        return "binary data"
            except PermissionError:
                return "no permission to read it"
            except (OSError, damage_error(compression), EOFError):
                return UNREADABLE
            reader = reader or "text"
            if marked := markup(head):
                if marked[0] in UNREADABLE_MARKUP:
                    return f"{marked[0]}, convert it: {marked[1]}"
                self.note(f"{marked[0]} with its marks, `{marked[1]}` converts it", visible_line(path.name))
        elif reader is None:
            return _no_reader(path, suffix)
        return FoundFile(str(path), str(root), status.st_size, status.st_mtime_ns, reader, compression)


def _no_reader(path: Path, suffix: str) -> str:
    """Return why a file is not indexed: what it is, where its beginning tells, or its suffix."""
    try:
        with path.open("rb") as file:
            marked = markup(file.read(_HEAD))
    except OSError:
        marked = None
    return f"{marked[0]}, convert it: {marked[1]}" if marked else f"no reader for {suffix or 'files without a suffix'}"


def _closed(root: Path, error: OSError) -> DataError:
    """Return the error of a folder that was given and cannot be looked into."""
    return DataError(
        f"{str(root)!r} cannot be opened: {error.strerror}", "change its permissions, or give another folder"
    )


def _leads_outside(path: Path, root: Path) -> bool:
    """Return whether a file in a folder is a link to one elsewhere, which may be somebody else's text."""
    try:
        return path.is_symlink() and path.exists() and not path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        return False


def sha256_of(path: str) -> bytes:
    """Return the hash of a file's bytes. Raises OSError."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").digest()
