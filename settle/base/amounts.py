"""Amounts as people write them: 30m, 2h, 10M, 1.5G, 400MB, 1%."""

import re

from pydantic_core import PydanticCustomError

from settle.base.errors import UsageError

SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = r"(\d+(?:\.\d+)?)\s*(s(?:ec(?:ond)?s?)?|m(?:in(?:ute)?s?)?|h(?:(?:ou)?rs?)?|d(?:ays?)?)"
COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
PRECISIONS = {
    **dict.fromkeys(("float32", "fp32", "f32", "float", "single"), "float32"),
    **dict.fromkeys(("bfloat16", "bf16"), "bfloat16"),
    **dict.fromkeys(("float16", "fp16", "f16", "half"), "float16"),
}
BYTES = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}


def seconds(text: str) -> float:
    """Return the seconds of "90s", "30 min", "1h30m" or "2 days"; a plain number is seconds. Raises UsageError."""
    if re.fullmatch(r"\s*\d+(\.\d+)?\s*", text):
        value = float(text)
    elif re.fullmatch(rf"(\s*{_DURATION})+\s*", text.lower()):
        value = sum(float(n) * SECONDS[unit[0]] for n, unit in re.findall(_DURATION, text.lower()))
    else:
        raise UsageError(f"{text!r} is not a duration", "write for example 90s, 30m, 1h30m or 8h")
    if value <= 0:
        raise UsageError(f"{text!r} is not a positive duration", "write for example 30m")
    return value


def count(text: str) -> int:
    """Return the number that "500k", "10M", "1.5G" or a plain number is. Raises UsageError."""
    return _in_units(text, COUNTS, "a count", "500k, 10M or 1.5G")


def num_bytes(text: str) -> int:
    """Return the bytes of "400MB", "1.5 GB" or "2GiB". Raises UsageError."""
    return _in_units(text, BYTES, "a size", "400MB or 1.5GB")


def _in_units(text: str, units: dict[str, float], what: str, examples: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if not found or found[2] not in units or float(found[1]) <= 0:
        raise UsageError(f"{text!r} is not {what}", f"write for example {examples}")
    return int(float(found[1]) * units[found[2]])


def count_text(value: float) -> str:
    """Return about this count, as `count` reads it: 8.1t, 20m."""
    unit = next((unit for unit in "tbmk" if value >= COUNTS[unit]), "")
    return f"{float(f'{value:.2g}') / COUNTS[unit]:g}{unit}"


def precision(text: str) -> str:
    """Return torch's name of a type that is spelled "bf16", "fp16", "half", "float32" … Raises UsageError."""
    name = PRECISIONS.get(text.strip().lower())
    if name is None:
        raise UsageError(f"{text!r} is not a dtype to compute in", "choose float32, bfloat16 or float16")
    return name


def short_precision(text: str) -> str:
    """Return the name of a floating type in GGUF files (f32, f16, bf16), however it is spelled.

    Other names are returned in lower case.
    """
    name = text.strip().lower()
    return {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}.get(PRECISIONS.get(name, ""), name)


def share(text: str) -> float:
    """Return "1%" or "0.01" as a share of one. Raises UsageError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", text.strip())
    value = float(found[1]) / (100 if found[2] else 1) if found else 0.0
    if not 0 < value < 1:
        raise UsageError(f"{text!r} is not a share", "write for example 1% or 0.01")
    return value


def within_64_bits(value: object) -> object:
    """Return the value. Raises PydanticCustomError for a whole number that torch, numpy and llama.cpp cannot hold."""
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise PydanticCustomError("too_large", "the number is too large")
    return value
