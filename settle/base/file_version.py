"""The version of a file that a run keeps. A file without one is of version 1, which wrote none."""

from settle.base.errors import RunError


def refuse_newer(values: object, newest: int, file: str) -> None:
    """Raises RunError when `values`, read from `file`, are of a version that this settle does not know."""
    version = values.get("version", 1) if isinstance(values, dict) else 1
    if not isinstance(version, int) or version > newest:
        raise RunError(
            f"{file} has version {version}; this settle reads versions up to {newest}",
            "pip install --upgrade settle-lm",
        )
