"""Data that grow old (catalogue, hardware, prices): shipped with settle, replaced by the user's update of known hash.

An update lies in $SETTLE_HOME/data/NAME.toml with its hash beside it in NAME.sha256. Nothing is fetched here.
"""

import datetime
import hashlib
import re
import tomllib
import zipfile
from pathlib import Path

from settle.base.errors import DataError, UsageError
from settle.base.files import home

OLD_DAYS = 180  # after which numbers are marked
MOST_BYTES = 4 << 20  # of a file that is read at all
_DIGEST = re.compile(r"[0-9a-f]{64}")


def dated_file(name: str, shipped: Path) -> Path:
    """Return the file to read: the user's update where it is newer than the one shipped.

    Raises DataError for an update that is not what was installed.
    """
    update = _place(name)
    if not update.is_file():
        return shipped
    pin = update.with_suffix(".sha256")
    try:
        text, pinned = update.read_bytes(), pin.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as e:
        fix = f"delete it, or install it again: `settle models update {update.name}`"
        raise DataError(f"{update} cannot be read: {e}", fix) from None
    if hashlib.sha256(text).hexdigest() != pinned:
        fix = "delete it, or install it again with its --sha256"
        raise DataError(f"{update} is not the file that was installed", fix)
    return update if _date(text, update.name) > _date(shipped.read_bytes(), shipped.name) else shipped


def read_update(path: Path) -> bytes:
    """Return the TOML in a file, or in a wheel that holds data only. Raises UsageError, DataError."""
    if not path.is_file():
        raise UsageError(f"{path} is no file", "name a .toml file or a wheel")
    if path.stat().st_size > MOST_BYTES:
        raise DataError(f"{path.name} is larger than {MOST_BYTES >> 20} MB", "a catalogue is 300 kB: check the file")
    if path.suffix != ".whl":
        return path.read_bytes()
    try:
        with zipfile.ZipFile(path) as wheel:
            names = [info for info in wheel.infolist() if info.filename.endswith(".toml")]
            if len(names) != 1 or names[0].file_size > MOST_BYTES:
                raise DataError(f"{path.name} holds {len(names)} .toml files", "a data wheel holds exactly one")
            return wheel.read(names[0])
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as e:
        raise DataError(f"{path.name} is no wheel: {e}", "get it again") from None


def check_pin(path: Path, sha256: str | None) -> None:
    """Return whether the file is the published one. Raises UsageError without a hash, DataError for another one."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 is None:
        raise UsageError(
            f"{path.name} has the hash {digest}", "compare it with the one published, and repeat with --sha256 HASH"
        )
    if not _DIGEST.fullmatch(sha256.lower()):
        raise UsageError(f"{sha256!r} is no SHA-256", "write its 64 hexadecimal digits")
    if digest != sha256.lower():
        raise DataError(
            f"{path.name} is not the file of that hash: it has {digest}", "get it again; nothing was changed"
        )


def install(name: str, text: bytes) -> Path:
    """Keep an update that was checked. Raises DataError for one from the future, OSError."""
    date = _date(text, name)
    if date > today():
        raise DataError(f"the {name} is dated {date}, which is in the future", "check the file, or the clock")
    place = _place(name)
    place.parent.mkdir(parents=True, exist_ok=True)
    for path, data in ((place, text), (place.with_suffix(".sha256"), hashlib.sha256(text).hexdigest().encode())):
        beside = path.with_suffix(path.suffix + ".new")
        beside.write_bytes(data)
        beside.replace(path)
    return place


def today() -> datetime.date:
    return datetime.date.today()


def age(date: datetime.date) -> str:
    """Return an age such as "31 days old", with a mark past OLD_DAYS."""
    days = (today() - date).days
    late = ", out of date: `settle models update FILE`" if days > OLD_DAYS else ""
    return f"{days} day{'' if days == 1 else 's'} old{late}"


def _place(name: str) -> Path:
    return home() / "data" / f"{name}.toml"


def _date(text: bytes, name: str) -> datetime.date:
    try:
        date = tomllib.loads(text.decode("utf-8"))["date"]
    except (ValueError, KeyError) as e:
        raise DataError(f"{name} is no dated file: {e}", "get it again") from None
    if not isinstance(date, datetime.date):
        raise DataError(f"{name} says no date", "get it again")
    return date
