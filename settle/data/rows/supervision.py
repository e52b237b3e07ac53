"""Rendered rows → tokens and a mask of the supervised ones, exact to the token and proven.

The text of every token is known, so its place in the row is too. Where a token would reach over the edge of an answer,
the row is cut there before it is encoded: that is also where a server's prompt ends. What is supervised is then decoded
again: it has to say what the answer says, and to end with a token that stops the generation.
Legend: N tokens of a row, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from settle.base.errors import ProofError
from settle.base.tokenizer import Tokenizer
from settle.data.layouts import Broken
from settle.data.rows.render import Rendered
from settle.data.tokenizer.vocabulary import ENDS, UNUSED


@dataclass(frozen=True)
class Encoded:
    """A row's ids (N,), and which are supervised: uint8 (N,).

    ends: where each answer ends, of those that have one.
    """

    ids: np.ndarray
    mask: np.ndarray
    ends: tuple[int, ...]
    text: str


class Supervision:
    """Encodes rows with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # a special token stands for no bytes of text, but in a rendered chat it is written out
        self.pieces: list[bytes] = [
            written if written or kind == UNUSED else token.encode()
            for token, written, kind in zip(tokenizer.tokens, tokenizer.token_bytes, tokenizer.token_types, strict=True)
        ]
        self._sizes = np.array([len(piece) for piece in self.pieces], np.int64)
        named = {i for token, i in tokenizer.special_tokens.items() if token in ENDS}
        self._stop_ids = np.array(sorted({tokenizer.eos_id, tokenizer.turn_end_id, *named}))
        self._specials = set(tokenizer.special_tokens.values())
        self.stops = [tokenizer.tokens[i] for i in self._stop_ids.tolist()]
        self.controls = sorted({*tokenizer.special_tokens, *self.stops})

    def encode(self, row: Rendered) -> Encoded:
        """Encode a row.

        Raises Broken when the tokens do not give the text back, ProofError when what is supervised is not right.
        """
        ids, begins = self._aligned(row)
        starts, stops = ([_bytes(row.text[:at]) for at in edges] for edges in _edges(row))
        first, after = np.searchsorted(begins, starts), np.searchsorted(begins, stops)
        if row.unended:
            ids = np.append(ids, self._tokenizer.eos_id)
            after[-1:] = len(ids)
        bos_id = self._tokenizer.bos_id
        if self._tokenizer.add_bos and bos_id is not None and ids[:1].tolist() != [bos_id]:
            ids = np.append(bos_id, ids)
            first, after = first + 1, after + 1
        mask = np.full(len(ids), row.everything, np.uint8)
        for answer, start, stop in zip(row.answers, first.tolist(), after.tolist(), strict=True):
            if answer.supervised:
                mask[start:stop] = 1
                self._prove(ids[start:stop], answer.says)
        mask[:1] = 0
        return Encoded(ids.astype(self._tokenizer.dtype), mask, tuple(after.tolist()), row.text)

    def shown(self, ids: np.ndarray, mask: np.ndarray) -> list[tuple[str, bool]]:
        """Return the row as text, special tokens written out, in pieces that are supervised or not."""
        edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(ids)]
        return [(self.text(ids[a:b]), bool(mask[a])) for a, b in pairwise(edges) if b > a]

    def text(self, ids: np.ndarray) -> str:
        """Return the text of ids, special tokens written out."""
        return b"".join(self.pieces[i] for i in ids.tolist()).decode("utf-8", "replace")

    def ids(self, text: str) -> list[int]:
        """Return the ids of a rendered text, with the token that opens every text of this model."""
        ids, bos_id = self._encode(text).tolist(), self._tokenizer.bos_id
        return [bos_id, *ids] if self._tokenizer.add_bos and bos_id is not None and ids[:1] != [bos_id] else ids

    def _aligned(self, row: Rendered) -> tuple[np.ndarray, np.ndarray]:
        """Return ids (N,) of a row and the byte at which each begins; answers begin and end with a token."""
        data = row.text.encode("utf-8", "replace")
        starts, stops = ([_bytes(row.text[:at]) for at in edges] for edges in _edges(row))
        ids = self._encode(row.text)
        places = self._places(ids, data)
        if places is not None and _all_in(starts, places[0]) and _all_in(stops, places[1]):
            return ids, places[0]
        parts, begins = [], []
        for a, b in pairwise(sorted({0, *starts, *stops, len(data)})):
            part = self._encode(data[a:b].decode("utf-8", "replace"))
            inner = self._places(part, data[a:b])
            if inner is None:
                raise Broken("its tokens do not give its text back")
            parts.append(part)
            begins.append(inner[0] + a)
        return np.concatenate([*parts, ids[:0]]), np.concatenate([*begins, ids[:0]])

    def _encode(self, text: str) -> np.ndarray:
        return np.asarray(self._tokenizer.encode(text, specials=True), np.int64)

    def _places(self, ids: np.ndarray, data: bytes) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the byte at which each token begins and ends, or None when the tokens do not spell the text.

        Some tokenizers put a space before a text or after a special token: it is of no bytes. Some take the space after
        a special token away: it belongs to no token.
        """
        if b"".join(self.pieces[i] for i in ids.tolist()) == data:
            ends = np.cumsum(self._sizes[ids])
            return ends - self._sizes[ids], ends
        first: list[int] = []
        after: list[int] = []
        at, special = 0, False
        for token in ids.tolist():
            piece = self.pieces[token]
            end = _end_of(data, at, piece)
            while end is None and special and (size := _space(data, at)):
                at += size
                end = _end_of(data, at, piece)
            if end is None:
                return None
            first.append(at)
            special = token in self._specials or (special and end == at)
            at = end
            after.append(at)
        while special and (size := _space(data, at)):
            at += size
        return (np.array(first, np.int64), np.array(after, np.int64)) if at == len(data) else None

    def _prove(self, ids: np.ndarray, says: Sequence[str]) -> None:
        """Check that the supervised tokens decode to the answer, and that the last of them ends the turn."""
        if not np.isin(ids[-1:], self._stop_ids).any():
            raise ProofError(
                f"the end of an answer is not supervised: its last token is {self.text(ids[-1:])!r}",
                f"the chat template has to end a turn with one of {', '.join(self.stops)}",
            )
        decoded, at = self._tokenizer.decode(ids.tolist()), 0
        for part in says:
            at = decoded.find(part, at)
            if at < 0:
                raise Broken("the chat template does not give the answer back")


def _edges(row: Rendered) -> tuple[list[int], list[int]]:
    """Return the characters at which the answers of a row begin and end."""
    return [answer.start for answer in row.answers], [answer.end for answer in row.answers]


def _all_in(needed: Sequence[int], places: np.ndarray) -> bool:
    """Return whether each of some places is among `places`, which ascend."""
    at = np.searchsorted(places, needed)
    return bool((at < len(places)).all() and (places[at] == needed).all())


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _end_of(data: bytes, at: int, piece: bytes) -> int | None:
    """Return where the text of a token that begins at `at` ends, with or without the space in front of it."""
    for written in (piece, piece[1:] if piece.startswith(b" ") else piece):
        if data.startswith(written, at):
            return at + len(written)
    return None


def _space(data: bytes, at: int) -> int:
    """Return the bytes of the white space character at that place, 0 when there is none."""
    character = data[at : at + 4].decode("utf-8", "ignore")[:1]
    return _bytes(character) if character.isspace() else 0


def pieces_of(text: Encoded, longest: int) -> Iterator[Encoded]:
    """Cut a long plain text into parts of at most `longest` tokens; each begins with the last token before it."""
    for start in range(0, max(len(text.ids) - 1, 1), longest - 1):
        ids, mask = text.ids[start : start + longest], text.mask[start : start + longest].copy()
        mask[:1] = 0
        yield Encoded(ids, mask, (), text.text if not start else "")


def shortened(row: Encoded, longest: int) -> tuple[Encoded | None, int]:
    """Return a row of at most `longest` tokens, and how many supervised answers it lost.

    It ends with the last answer that fits whole; None when no supervised one does.
    """
    lost = sum(bool(row.mask[end - 1]) for end in row.ends if end > longest)
    fitting = [end for end in row.ends if end <= longest and row.mask[end - 1]]
    if not fitting:
        return None, lost
    end = fitting[-1]
    return Encoded(row.ids[:end], row.mask[:end], tuple(e for e in row.ends if e <= end), row.text), lost
