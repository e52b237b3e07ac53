"""A record of JSON as text."""

from typing import Any


def record_text(value: Any, key: str = "") -> str:
    """A line `key: value` for each value in it that says something, keys inside of each other joined by dots; a text
    of several lines keeps them."""
    lines: list[str] = []
    waiting = [(key, value)]
    while waiting:
        name, held = waiting.pop()
        if isinstance(held, dict):
            waiting += [(f"{name}.{k}" if name else str(k), v) for k, v in reversed(held.items())]
        elif isinstance(held, list) and any(isinstance(v, dict | list) for v in held):
            waiting += [(name, v) for v in reversed(held)]
        elif held not in (None, "", []):
            said = ", ".join(map(_said, held)) if isinstance(held, list) else _said(held)
            lines.append(f"{name}: {said}" if name else said)
    return "\n".join(lines)


def _said(value: Any) -> str:
    return value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
