"""A text as its sentences; items of lists, rows of tables and lines of listings count as sentences."""

import re
from collections.abc import Iterator

# after a full stop and a closing quote, before a capital or a digit; or at the end of a paragraph or an item
_END = re.compile(
    r"(?<=[.!?…])[\"'”’)\]]*\s+(?=[\"'“‘(\[`]*[A-Z0-9])|(?<=[。！？])|\n\s*\n|\n(?=\s*(?:[-*+•|>]|\d+[.)])\s)"
)
_ABBREVIATED = re.compile(r"(?:^|\s)(?:[A-Z]|e\.g|i\.e|cf|vs|etc|approx|Dr|Mr|Mrs|Ms|No|Fig|Sec|Eq|St)\.$")


def sentences(text: str) -> Iterator[str]:
    """Each sentence in order, its white space normalized."""
    pending = ""
    start = 0
    for end in [*_END.finditer(text), None]:
        piece = text[start : end.end() if end else len(text)]
        start = end.end() if end else len(text)
        pending += piece
        if end and _ABBREVIATED.search(pending.rstrip()):
            continue
        sentence = " ".join(pending.split())
        if sentence:
            yield sentence
        pending = ""
