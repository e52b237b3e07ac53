"""Amounts as people write them: 30m, 2h, 10M, 1.5G."""

import re

from settle.base.errors import UsageError

SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}


def seconds(text: str) -> float:
    """ "90s", "30m", "1h30m", "2d" (plain numbers are seconds) in seconds. Raises UsageError."""
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.lower())
    if not parts or re.sub(r"[\d.smhd\s]", "", text.lower()):
        raise UsageError(f"{text!r} is not a duration", "write for example 90s, 30m, 1h30m or 8h")
    value = sum(float(n) * SECONDS[unit or "s"] for n, unit in parts)
    if value <= 0:
        raise UsageError(f"{text!r} is no time at all", "write for example 30m")
    return value


def count(text: str) -> int:
    """ "500k", "10M", "1.5G" or a plain number. Raises UsageError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgb]?)", text.strip().lower())
    if not found or float(found[1]) <= 0:
        raise UsageError(f"{text!r} is not a count", "write for example 500k, 10M or 1.5G")
    return int(float(found[1]) * COUNTS[found[2]])
