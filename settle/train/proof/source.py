"""What the first batch has to be by the data: its inputs, targets and document borders, held against the documents.

Legend: S segments of a batch, N its tokens, n tokens of a document.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from settle.base.errors import ProofError
from settle.data.batches import Batch

SHOWN_TOKENS = 12  # of a row, in a message
READ_AGAIN_TOKENS = 4096  # longest document whose text is encoded again

Decode = Callable[[Sequence[int]], str]
Encode = Callable[[str], np.ndarray]


@dataclass(frozen=True)
class SourceRow:
    """The part of a document that one segment of a batch predicts.

    name: where it comes from, for messages. document: ids (n,), as the store keeps them. start, stop: which of them are
    predicted. before: the id that stands before the document. supervised: (n,), 0 where a token is no target; None
    when all are.
    """

    name: str
    document: np.ndarray
    start: int
    stop: int
    before: int
    supervised: np.ndarray | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def inputs(self) -> np.ndarray:
        """What the model reads."""
        return np.append(self.before, self.document)[self.start : self.stop].astype(np.int64)

    @property
    def targets(self) -> np.ndarray:
        """What it predicts after each of `inputs`; -1 where that is not learned."""
        targets = self.document[self.start : self.stop].astype(np.int64)
        if self.supervised is not None:
            targets[self.supervised[self.start : self.stop] == 0] = -1
        return targets


def require_targets(batch: Batch, rows: Sequence[SourceRow], decode: Decode | None = None) -> str:
    """Check that the batch is what its documents say; return the first row's targets as text.

    Each segment ends where its document's part ends, the inputs are the documents' tokens, and each target is the token
    that follows. Raises ProofError naming the row, and in which way targets are wrong if that is one of the usual ways.
    """
    ends = np.cumsum([row.stop - row.start for row in rows])
    for row in rows:
        if not 0 <= row.start < row.stop <= len(row.document):
            raise ProofError(
                f"tokens {row.start} to {row.stop} of {row} are in the batch, and it has {len(row.document)}",
                "documents are cut in the wrong place: report this",
            )
    edges = batch.cu_seqlens[1:]
    if len(edges) != len(ends) or (edges != ends).any():
        at = next((i for i, (a, b) in enumerate(zip(edges, ends, strict=False)) if a != b), min(len(edges), len(ends)))
        raise ProofError(
            f"{rows[min(at, len(rows) - 1)]} ends at token {ends[min(at, len(ends) - 1)]} of the batch, and a segment "
            f"of the batch at {edges[min(at, len(edges) - 1)]}",
            "attention would cross a document's border: report this",
        )
    for row, first, last in zip(rows, [0, *ends[:-1]], ends, strict=True):
        if (batch.inputs[first:last] != row.inputs).any():
            raise ProofError(
                f"the batch does not hold the tokens of {row}", "other text is read than asked: report this"
            )
        if (batch.targets[first:last] != row.targets).any():
            raise ProofError(
                f"{row}: {_difference(row, batch.targets[first:last], decode)}",
                "the model would learn something else than the next token: report this",
            )
    if decode is None:
        return f"{len(rows)} rows"
    learned = rows[0].targets
    return f"{len(rows)} rows; the first is to answer {decode(learned[learned >= 0][:SHOWN_TOKENS].tolist())!r}"


def require_text(rows: Sequence[SourceRow], decode: Decode, encode: Encode) -> None:
    """Check that the ids of plain text, decoded and encoded again, are the ids. Raises ProofError naming the row.

    Documents that are too long, or whose bytes are no UTF-8, are passed over.
    """
    for row in rows:
        ids = row.document[:-1]  # the last one ends the document
        text = decode(ids.tolist()) if len(ids) <= READ_AGAIN_TOKENS else "\ufffd"
        if "\ufffd" not in text and not np.array_equal(encode(text), ids):
            raise ProofError(
                f"the ids of {row} are not those of its text, which begins with {text[:40]!r}",
                "the tokens on disk are another tokenizer's: delete the folder tokens in $SETTLE_HOME, and start again",
            )


def _difference(row: SourceRow, targets: np.ndarray, decode: Decode | None) -> str:
    """How targets differ from the row's, in words."""
    wanted = row.targets
    there = targets >= 0
    if (there != (wanted >= 0)).any():
        at = int(np.flatnonzero(there != (wanted >= 0))[0])
        return f"token {at} is {'' if there[at] else 'not '}learned, and should{' not' if there[at] else ''} be"
    if np.array_equal(targets[there], row.inputs[there]):
        return "the targets are the inputs, so there is nothing to predict"
    ahead = row.document[row.start + 1 : row.stop + 1]
    both = there[: len(ahead)]
    if both.any() and np.array_equal(targets[: len(ahead)][both], ahead[both]):
        return "the targets lie two tokens ahead"
    at = int(np.flatnonzero(targets != wanted)[0])
    given, due = int(targets[at]), int(wanted[at])
    if decode is None:
        return f"target {at} is the token {given}, the text goes on with {due}"
    before = decode(row.inputs[max(0, at - SHOWN_TOKENS) : at + 1].tolist())
    return f"after {before!r} the target is {decode([given])!r}, and the text continues with {decode([due])!r}"
