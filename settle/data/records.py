"""The text of a record: which of a row's values is the document, for tables and JSON."""

from typing import Any

from settle.base.errors import DataError

# in this order; the first that is there and holds text
_TEXT_KEYS = ("text", "content", "body", "document", "article", "passage", "code", "story", "raw_content")
_TURN_KEYS = ("messages", "conversations", "conversation", "turns")


def record_text(record: Any, field: str | None) -> str:
    """The document in one record; '' when it holds none.

    With `field` that value. Otherwise a value under a usual name for text, a conversation's turns, or, when there is
    neither, every text in the record, in order, with a blank line between. Raises DataError when `field` is not there.
    """
    if isinstance(record, str):
        return record
    if isinstance(record, list):
        return "\n\n".join(filter(None, (record_text(r, None) for r in record)))
    if not isinstance(record, dict):
        return ""
    if field is not None:
        if field not in record:
            known = ", ".join(map(repr, list(record)[:20]))
            raise DataError(f"there is no field {field!r} in the data", f"use one of {known}")
        return record_text(record[field], None)
    lowered = {str(key).lower(): value for key, value in record.items()}
    for key in _TEXT_KEYS:
        if isinstance(lowered.get(key), str) and lowered[key].strip():
            return str(lowered[key])
    for key in _TURN_KEYS:
        if isinstance(lowered.get(key), list):
            return "\n\n".join(filter(None, map(_turn_text, lowered[key])))
    return "\n\n".join(filter(None, (record_text(value, None) for value in record.values())))


def _turn_text(turn: Any) -> str:
    if isinstance(turn, dict):
        return next((v for k in ("content", "value", "text") if isinstance(v := turn.get(k), str)), "")
    return turn if isinstance(turn, str) else ""
