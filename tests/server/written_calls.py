"""Answers of models with tools, as they are really written: calls in each usual form, and texts that are no calls.

Each form is written twice in `written_calls.json`: the first of each pair was used while the reader was made, the
second only judged it, once.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """calls: names and arguments that the text holds. content: what remains of it, stripped; None is not looked at."""

    form: str
    text: str
    calls: list[tuple[str, dict[str, Any]]]
    content: str | None


_DATA = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
SCHEMAS: dict[str, dict[str, Any]] = _DATA["schemas"]
PAIRS = [
    [Answer(a["form"], a["text"], [(name, values) for name, values in a["calls"]], a.get("content")) for a in pair]
    for pair in _DATA["pairs"]
]
