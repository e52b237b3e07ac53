"""Passages → the numbered sources of a prompt: neighbours joined, in the order that suits small models.

Every passage is tokenized by itself (see `settle.infer.prompt_encoder`), so the tokens of a prompt are the sum of its
pieces' tokens, and what fits is known before the model runs.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from settle.base.visible import visible_line
from settle.retrieve.index.catalogue.records import Occurrence, Passage
from settle.retrieve.index.collection import Collection
from settle.retrieve.search.hybrid_search import Hit

TOKENS = 1536  # of all passages together: small models get lost in more, and a CPU reads slowly
WIDENED = 2  # best passages that get their neighbours, as far as there is room
_REFERENCE = re.compile(r"\[(\d+)\]")


class Piece(NamedTuple):
    """A passage at one of its places."""

    passage: Passage
    occurrence: Occurrence

    @property
    def place(self) -> str:
        """The place to open."""
        return self.occurrence.place.after(self.occurrence.path)


@dataclass(frozen=True)
class Source:
    """The adjoining passages of a document, in order, that one citation number refers to."""

    number: int
    pieces: tuple[Piece, ...]

    @property
    def headings(self) -> tuple[str, ...]:
        """The headings that all of its passages are under."""
        levels = zip(*(piece.passage.headings for piece in self.pieces), strict=False)
        same = itertools.takewhile(lambda level: len(set(level)) == 1, levels)
        return tuple(level[0] for level in same)

    @property
    def title(self) -> str:
        """Its headings, or the name of its file, on one line."""
        return visible_line(" › ".join(self.headings) or Path(self.pieces[0].occurrence.path).name)

    @property
    def texts(self) -> tuple[str, str]:
        """Return the number and the text in a prompt.

        Only citations are numbers in brackets there, so others get parentheses.
        """
        lines, above = [*([" › ".join(self.headings)] if self.headings else [])], self.headings
        for piece in self.pieces:
            if piece.passage.headings != above:
                lines += piece.passage.headings[-1:]
            lines.append(piece.passage.text)
            above = piece.passage.headings
        text = "\n".join(lines)
        return f"[{self.number}]", _REFERENCE.sub(r"(\1)", f" {text}\n\n")


@dataclass(frozen=True)
class Packed:
    """The sources that fit into a prompt.

    sources: in the order of the prompt, the best last. dropped: passages that did not fit. tokens: of all sources
    together.
    """

    sources: tuple[Source, ...]
    dropped: tuple[Hit, ...]
    tokens: int


def pack(collection: Collection, hits: Sequence[Hit], count: Callable[[str], int], room: int) -> Packed:
    """Return the hits, best first, as far as they fit into `room` tokens, then their neighbours.

    count: tokens of a text.
    """
    groups, dropped = _Groups(cache(count)), list[Hit]()
    with collection.catalogue.snapshot():
        for hit in hits:
            if not groups.add(Piece(hit.passage, hit.occurrences[0]), room):
                dropped.append(hit)
        for hit in hits[:WIDENED]:
            for piece in _neighbours(collection, hit.occurrences[0]):
                groups.add(piece, room, joining=True)
    return Packed(groups.sources(), tuple(dropped), groups.tokens())


class _Groups:
    """The passages chosen so far; those that adjoin in a document form one group."""

    def __init__(self, count: Callable[[str], int]) -> None:
        self._count = count
        self._groups: list[list[Piece]] = []  # the best first

    def add(self, piece: Piece, room: int, joining: bool = False) -> bool:
        """Add a passage if it fits, and return whether it is in a group now. joining: only where it adjoins a group."""
        at = piece.occurrence
        if any(at[:3] == other.occurrence[:3] for group in self._groups for other in group):
            return True
        touching = [group for group in self._groups if any(_adjoin(at, other.occurrence) for other in group)]
        if joining and not touching:
            return False
        joined = sorted([piece, *(p for group in touching for p in group)], key=lambda p: p.occurrence.ordinal)
        changed: list[list[Piece]] = []
        for group in self._groups:
            if group not in touching:
                changed.append(group)
            elif group is touching[0]:
                changed.append(joined)
        changed += [] if touching else [joined]
        before, self._groups = self._groups, changed
        if self.tokens() <= room:
            return True
        self._groups = before
        return False

    def tokens(self) -> int:
        return sum(self._count(text) for source in self.sources() for text in source.texts)

    def sources(self) -> tuple[Source, ...]:
        """Return the sources in prompt order, the best last: models read best what is next to the question."""
        return tuple(Source(number, tuple(group)) for number, group in enumerate(reversed(self._groups), 1))


def _neighbours(collection: Collection, at: Occurrence) -> list[Piece]:
    """Return the passage after one, then the passage before it."""
    around = dict(collection.catalogue.passages.around(at.document, at.ordinal - 1, at.ordinal + 1))
    ids = [around[ordinal] for ordinal in (at.ordinal + 1, at.ordinal - 1) if ordinal in around]
    passages, occurrences = collection.catalogue.passages.get(ids), collection.catalogue.passages.occurrences(ids)
    neighbours = []
    for id in ids:
        occurrence = next(s for s in occurrences[id] if s.document == at.document and abs(s.ordinal - at.ordinal) == 1)
        neighbours.append(Piece(passages[id], occurrence))
    return neighbours


def _adjoin(one: Occurrence, other: Occurrence) -> bool:
    return one.document == other.document and abs(one.ordinal - other.ordinal) == 1
