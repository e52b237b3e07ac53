"""Rendered rows → tokens and which of them are supervised, to the token; with the proof that it is so.

The text of every token is known, so its place in the row is too. Where a token would reach over the edge of an answer,
the row is cut there before it is encoded: that is also where a server's prompt ends. What is supervised is then decoded
again: it has to say what the answer says, and to end with a token that stops the generation.
Legend: N tokens of a row, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from settle.base.errors import ProofError
from settle.data.layouts import Broken
from settle.data.rows.rendering import Rendered

_CONTROL = 3  # GGUF's token types
_UNUSED = 5
# names of tokens at which llama.cpp stops, whatever the file says of them
_STOPS = {
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>"),
    *("<EOT>", "_<EOT>", "<|EOT|>", "<｜end▁of▁sentence｜>", "<|return|>", "<|call|>", "</s>", "<eos>", "<|eot|>"),
}


@dataclass(frozen=True)
class Encoded:
    """A row's ids (N,), and which are supervised: uint8 (N,). ends: where each answer ends, of those that have one."""

    ids: np.ndarray
    mask: np.ndarray
    ends: tuple[int, ...]
    text: str


class Supervision:
    """Encodes rows with one tokenizer; of settle's own surface, see `Tokenizer`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # a special token stands for no bytes of text, but in a rendered chat it is written out
        self.pieces: list[bytes] = [
            written if written or kind == _UNUSED else token.encode()
            for token, written, kind in zip(tokenizer.tokens, tokenizer.token_bytes, tokenizer.token_types, strict=True)
        ]
        self._sizes = np.array([len(piece) for piece in self.pieces], np.int64)
        controls = {i for i, kind in enumerate(tokenizer.token_types) if kind == _CONTROL}
        named = {i for i in controls if tokenizer.tokens[i] in _STOPS}
        self._stop_ids = np.array(sorted({tokenizer.eos_id, tokenizer.turn_end_id, *named} - {None, -1}))
        self.stops = [tokenizer.tokens[i] for i in self._stop_ids.tolist()]
        self.controls = [tokenizer.tokens[i] for i in sorted(controls | set(self._stop_ids.tolist()))]

    def encode(self, row: Rendered) -> Encoded:
        """Raises Broken when the tokens do not give the text back, ProofError when what is supervised is not right."""
        data = row.text.encode("utf-8", "replace")
        edges = [len(row.text[:at].encode("utf-8", "replace")) for a in row.answers for at in (a.start, a.end)]
        ids, before = self._aligned(row.text, data, edges)
        if row.unended:
            ids, before = np.append(ids, self._tokenizer.eos_id), np.append(before, before[-1])
        first = np.searchsorted(before, edges[0::2], "right") - 1
        after = np.searchsorted(before, edges[1::2], "left")
        if row.unended and len(after):
            after[-1] = len(ids)
        if self._tokenizer.add_bos and ids[:1].tolist() != [self._tokenizer.bos_id]:
            ids = np.append(self._tokenizer.bos_id, ids)
            first, after = first + 1, after + 1
        mask = np.full(len(ids), row.everything, np.uint8)
        for answer, start, stop in zip(row.answers, first.tolist(), after.tolist(), strict=True):
            if answer.supervised:
                mask[start:stop] = 1
                self._prove(ids[start:stop], answer.says)
        mask[0] = 0
        return Encoded(ids.astype(self._tokenizer.dtype), mask, tuple(after.tolist()), row.text)

    def shown(self, ids: np.ndarray, mask: np.ndarray) -> list[tuple[str, bool]]:
        """The row as text, special tokens written out, in pieces that are supervised or not."""
        edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(ids)]
        return [(self.text(ids[a:b]), bool(mask[a])) for a, b in pairwise(edges) if b > a]

    def text(self, ids: np.ndarray) -> str:
        """The text of ids, special tokens written out."""
        return b"".join(self.pieces[i] for i in ids.tolist()).decode("utf-8", "replace")

    def _aligned(self, text: str, data: bytes, edges: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """ids (N,) and how many bytes of the text stand before each and after the last: int64 (N + 1,)."""
        ids = self._encode(text)
        before = self._places(ids, data)
        if before is not None and np.isin(edges, before).all():
            return ids, before
        cuts = sorted({0, *edges, len(data)})
        parts, places = [], [np.zeros(1, np.int64)]
        for a, b in pairwise(cuts):
            part = self._encode(data[a:b].decode("utf-8", "replace"))
            inner = self._places(part, data[a:b])
            if inner is None:
                raise Broken("its tokens do not give its text back")
            parts.append(part)
            places.append(inner[1:] + a)
        return np.concatenate(parts) if parts else ids, np.concatenate(places)

    def _encode(self, text: str) -> np.ndarray:
        return np.asarray(self._tokenizer.encode(text, specials=True), np.int64)

    def _places(self, ids: np.ndarray, data: bytes) -> np.ndarray | None:
        """Bytes before each token and after the last, or None when the tokens do not spell the text.

        Some tokenizers put a space before a text or after a special token; it is of no bytes.
        """
        if b"".join(self.pieces[i] for i in ids.tolist()) == data:
            return np.append(0, np.cumsum(self._sizes[ids]))
        places = [0]
        for token in ids.tolist():
            piece = self.pieces[token]
            if not data.startswith(piece, places[-1]):
                if not piece.startswith(b" ") or not data.startswith(piece[1:], places[-1]):
                    return None
                piece = piece[1:]
            places.append(places[-1] + len(piece))
        return np.array(places, np.int64) if places[-1] == len(data) else None

    def _prove(self, ids: np.ndarray, says: Sequence[str]) -> None:
        """What is supervised gives the answer back, and its last token ends the turn."""
        if not np.isin(ids[-1:], self._stop_ids).any():
            raise ProofError(
                f"the end of an answer is not supervised: its last token is {self.text(ids[-1:])!r}",
                f"the chat template has to end a turn with one of {', '.join(self.stops)}",
            )
        said, at = self._tokenizer.decode(ids.tolist()), 0
        for part in says:
            at = said.find(part, at)
            if at < 0:
                raise Broken("the chat template does not give the answer back")


def pieces_of(text: Encoded, longest: int) -> Iterator[Encoded]:
    """A long plain text in parts of at most `longest` tokens; each begins with the last token of the one before."""
    for start in range(0, max(len(text.ids) - 1, 1), longest - 1):
        ids, mask = text.ids[start : start + longest], text.mask[start : start + longest].copy()
        mask[:1] = 0
        yield Encoded(ids, mask, (), text.text if not start else "")


def shortened(row: Encoded, longest: int) -> tuple[Encoded | None, int]:
    """A row of at most `longest` tokens, and how many supervised answers it lost.

    It ends with the last answer that fits whole; None when no supervised one does.
    """
    lost = sum(bool(row.mask[end - 1]) for end in row.ends if end > longest)
    fitting = [end for end in row.ends if end <= longest and row.mask[end - 1]]
    if not fitting:
        return None, lost
    end = fitting[-1]
    return Encoded(row.ids[:end], row.mask[:end], tuple(e for e in row.ends if e <= end), row.text), lost
