"""Values of a file's metadata or of a config.json, by type: a file may hold anything under a key."""

from settle.base.errors import FormatError
from settle.formats import Metadata

TOKENS = "tokenizer.ggml.tokens"


def number(metadata: Metadata, key: str) -> float:
    """Return a number. Raises KeyError when the key is missing, FormatError for anything that is no number."""
    value = metadata[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FormatError(f"{key} is {value!r}, not a number", "get the file again")
    return value


def whole(metadata: Metadata, key: str) -> int:
    """As `number`, for whole numbers."""
    value = number(metadata, key)
    if value != value // 1:
        raise FormatError(f"{key} is {value!r}, not a whole number", "get the file again")
    return int(value)


def numbers(metadata: Metadata, key: str) -> list[float]:
    """Return a list of numbers, of one for a number; empty when the key is missing. Raises FormatError as `number`."""
    value = metadata.get(key)
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [number({key: item}, key) for item in values]


def text(metadata: Metadata, key: str) -> str | None:
    """None when the key is missing or holds no text."""
    value = metadata.get(key)
    return value if isinstance(value, str) else None


def texts(metadata: Metadata, key: str) -> list[str]:
    """Empty when the key is missing. Raises FormatError for anything that is no list of texts."""
    value = metadata.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise FormatError(f"{key} is not a list of texts", "get the file again")
    return value


def section(metadata: Metadata, key: str) -> dict[str, object]:
    """Empty when the key is missing. Raises FormatError for anything that is no object."""
    value = metadata.get(key) or {}
    if not isinstance(value, dict):
        raise FormatError(f"{key} is {value!r}, not an object", "get the file again")
    return value


def largest(metadata: Metadata, key: str, default: int = 0) -> int:
    """Return a whole number under a key of the file's architecture: the largest where each layer has its own.

    `default` when the file does not say.
    """
    value = metadata.get(f"{metadata.get('general.architecture')}.{key}", default)
    values = value if isinstance(value, list) else [value]
    return max((v for v in values if type(v) is int), default=default)
