"""A record of JSON or a table as text: as lines of `key: value` for search, and as a document for training."""

from settle.base.errors import DataError

# in this order; the first that is there and holds text
_TEXT_KEYS = ("text", "content", "body", "document", "article", "passage", "code", "story", "raw_content")
_TURN_KEYS = ("messages", "conversations", "conversation", "turns")


def record_lines(value: object, key: str = "") -> str:
    """A line `key: value` for each value that is not empty, nested keys joined by dots; a text of several lines keeps
    them.
    """
    lines: list[str] = []
    waiting: list[tuple[str, object]] = [(key, value)]
    while waiting:
        name, current = waiting.pop()
        if isinstance(current, dict):
            waiting += [(f"{name}.{k}" if name else str(k), v) for k, v in reversed(current.items())]
        elif isinstance(current, list) and any(isinstance(v, dict | list) for v in current):
            waiting += [(name, v) for v in reversed(current)]
        elif current not in (None, "", []):
            text = ", ".join(map(_scalar, current)) if isinstance(current, list) else _scalar(current)
            lines.append(f"{name}: {text}" if name else text)
    return "\n".join(lines)


def _scalar(value: object) -> str:
    return value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


def record_document(record: object, field: str | None) -> str:
    """The document in one record; '' when it holds none.

    With `field` that value. Otherwise a value under a usual name for text, a conversation's turns, or, when there is
    neither, every text in the record, in order, with a blank line between. Raises DataError when `field` is not there.
    """
    if isinstance(record, str):
        return record
    if isinstance(record, list):
        return "\n\n".join(filter(None, (record_document(r, None) for r in record)))
    if not isinstance(record, dict):
        return ""
    if field is not None:
        if field not in record:
            known = ", ".join(map(repr, list(record)[:20]))
            raise DataError(f"there is no field {field!r} in the data", f"use one of {known}")
        return record_document(record[field], None)
    lowered = {str(key).lower(): value for key, value in record.items()}
    for key in _TEXT_KEYS:
        if isinstance(text := lowered.get(key), str) and text.strip():
            return text
    for key in _TURN_KEYS:
        if isinstance(turns := lowered.get(key), list):
            return "\n\n".join(filter(None, map(_turn_text, turns)))
    return "\n\n".join(filter(None, (record_document(value, None) for value in record.values())))


def _turn_text(turn: object) -> str:
    if isinstance(turn, dict):
        return next((v for k in ("content", "value", "text") if isinstance(v := turn.get(k), str)), "")
    return turn if isinstance(turn, str) else ""
