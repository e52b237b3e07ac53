"""The version of settle, and those of the files that a run keeps: a file without one is of version 1."""

from settle.base.errors import RunError

__version__ = "0.2.0"


def refuse_newer(values: object, newest: int, file: str) -> None:
    """Raise RunError when `values`, read from `file`, are of a version that this settle does not know."""
    version = values.get("version", 1) if isinstance(values, dict) else 1
    if not isinstance(version, int) or version > newest:
        raise RunError(
            f"{file} has version {version}; this settle reads versions up to {newest}",
            "pip install --upgrade settle-lm",
        )
