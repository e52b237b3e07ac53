"""A text as its sentences; items of lists, rows of tables and lines of listings count as some."""

import re
from collections.abc import Iterator

# after a full stop, what closes a quotation, and before a new beginning; or where a line ends a paragraph or an item
_END = re.compile(
    r"(?<=[.!?…])[\"'”’)\]]*\s+(?=[\"'“‘(\[`]*[A-Z0-9])|(?<=[。！？])|\n\s*\n|\n(?=\s*(?:[-*+•|>]|\d+[.)])\s)"
)
_ABBREVIATED = re.compile(r"(?:^|\s)(?:[A-Z]|e\.g|i\.e|cf|vs|etc|approx|Dr|Mr|Mrs|Ms|No|Fig|Sec|Eq|St)\.$")


def sentences(text: str) -> Iterator[str]:
    """Each sentence with its white space made single, in order."""
    held = ""
    start = 0
    for end in [*_END.finditer(text), None]:
        piece = text[start : end.end() if end else len(text)]
        start = end.end() if end else len(text)
        held += piece
        if end and _ABBREVIATED.search(held.rstrip()):
            continue
        told = " ".join(held.split())
        if told:
            yield told
        held = ""
