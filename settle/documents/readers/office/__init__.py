"""Office documents, mail and books; and the check of those that are zip files inside."""

from pathlib import Path
from zipfile import BadZipFile, ZipFile

from settle.documents.blocks import Unreadable

MOST_UNPACKED = 1 << 30  # bytes that all members together may have
MOST_MEMBERS = 50_000
MOST_RATIO = 200  # of unpacked to packed bytes, where that is more than SMALL; pages of text come to about ten
SMALL = 16 << 20
_ZIP, _OLE = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"  # the latter: Office up to 2003, and newer files with a password


def check_zip(path: Path, kind: str) -> None:
    """Raise Unreadable for a file that is not a zip, needs a password, or would unpack to too much.

    kind: what the file should be, for errors. zipfile itself reads no more of a member than it declares.
    """
    with path.open("rb") as file:
        head = file.read(4)
    if head == _OLE:
        raise Unreadable(f"encrypted, or of Office before 2007: no {kind} as they are read here")
    if head != _ZIP:
        raise Unreadable(f"no {kind}, whatever its name says")
    try:
        with ZipFile(path) as archive:
            members = archive.infolist()
    except BadZipFile:
        raise Unreadable(f"damaged: this {kind} cannot be opened") from None
    unpacked = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    if len(members) > MOST_MEMBERS or unpacked > max(SMALL, min(MOST_UNPACKED, MOST_RATIO * packed)):
        raise Unreadable(f"a zip bomb, it seems: {packed:,} bytes in {len(members):,} members unpack to {unpacked:,}")
    if any(member.flag_bits & 1 for member in members):
        raise Unreadable("encrypted: it needs a password")
