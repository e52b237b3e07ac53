"""A text as a model read it, token by token, and the same text in a second model.

N tokens. Token i is predicted by what stands before it: the first one is not, unless the model opens a text itself.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from settle.base.tokenizer import Tokenizer
from settle.data.tokenizer.vocabulary import tokenizer_difference
from settle.infer.tokens.next_token import Distribution, Positions, Sampler


class TokenText(NamedTuple):
    """A token as people read it.

    text: what it stands for; the name of a special one; `<0xE2><0x82>` where it is a piece of a character. whole: the
    characters that such a piece belongs to with its neighbours, "" for other tokens.
    """

    id: int
    text: str
    is_special: bool = False
    whole: str = ""

    @property
    def shown(self) -> str:
        """In quotes, so that spaces can be seen; a special token without any."""
        return self.text if self.is_special else f'"{self.text}"'

    def to_json(self) -> dict[str, object]:
        return {"id": self.id, "text": self.text, "special": self.is_special, "whole": self.whole}


def token_text(tokenizer: Tokenizer, token: int) -> TokenText:
    """One token alone."""
    raw = tokenizer.token_bytes[token] if token < tokenizer.vocab_size else b""
    if not raw:
        return TokenText(token, _name(tokenizer, token), True)
    try:
        return TokenText(token, raw.decode())
    except UnicodeDecodeError:
        return TokenText(token, "".join(f"<0x{byte:02X}>" for byte in raw))


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[TokenText]:
    """Return the tokens of a text in order; pieces of a character know it."""
    texts = [token_text(tokenizer, token) for token in ids]
    for first, last in _pieces(tokenizer, ids):
        raw = b"".join(tokenizer.token_bytes[token] for token in ids[first:last])
        whole = raw.decode("utf-8", "replace")
        texts[first:last] = [text._replace(whole=whole) for text in texts[first:last]]
    return texts


def _pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield runs of tokens that are no whole characters alone, each as (first, behind the last).

    They are as short as gives whole characters together.
    """
    raw, first = b"", 0
    for at, token in enumerate(ids):
        piece = tokenizer.token_bytes[token] if token < tokenizer.vocab_size else b""
        if not raw and _is_text(piece):
            continue
        first = at if not raw else first
        raw += piece
        if _is_text(raw) or not piece:
            yield first, at + bool(piece)
            raw = b""
    if raw:
        yield first, len(ids)


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _name(tokenizer: Tokenizer, token: int) -> str:
    """Return the name of a token that stands for no text; a vocabulary may be padded with ids that have no token."""
    return tokenizer.tokens[token] if token < tokenizer.vocab_size else f"[{token}]"


SHOWN = 20  # likeliest tokens that people see


@dataclass(frozen=True)
class TextReading:
    """A text as a model read it.

    model: its name. engine: what computed it. ids (N,): of the text as the model reads it. positions: what may follow
    after each. skipped: tokens before these that did not fit into the context.
    """

    model: str
    engine: str
    tokenizer: Tokenizer
    ids: list[int]
    positions: Positions
    skipped: int = 0

    @cached_property
    def texts(self) -> list[TokenText]:
        return token_texts(self.tokenizer, self.ids)

    def logprob(self, index: int) -> float | None:
        """Natural, of token `index`; None where nothing stands before it."""
        return float(self.positions.logprobs[index - 1]) if index else None

    def before(self, index: int) -> Distribution | None:
        """Return what could have been at token `index`, or comes after the text for N; None where nothing precedes."""
        return self.positions.at(index - 1) if index else None

    def alternatives(
        self, distribution: Distribution, sampler: Sampler | None = None, top: int = SHOWN
    ) -> list[dict[str, Any]]:
        """Return the `top` likeliest tokens.

        Each is {"rank", "id", "text", "special", "logprob", "probability"}, and has how often it is "drawn" where a
        sampler is given.
        """
        drawn = distribution.drawn(sampler) if sampler else None
        pairs = enumerate(zip(distribution.ids[:top].tolist(), distribution.logprobs.tolist(), strict=False))
        return [
            {"rank": at + 1, **token_text(self.tokenizer, token).to_json(), "logprob": logprob}
            | {"probability": math.exp(logprob)}
            | ({"drawn": float(drawn[at])} if drawn is not None else {})
            for at, (token, logprob) in pairs
        ]

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte of the tokens that are predicted; None where they stand for no text."""
        num_bytes = sum(int(self.tokenizer.byte_length[token]) for token in self.ids[1:])
        total = float(self.positions.logprobs[: len(self.ids) - 1].sum())
        return -total / math.log(2) / num_bytes if num_bytes else None

    def to_json(self, sampler: Sampler | None = None, top: int = SHOWN) -> dict[str, object]:
        return {
            "model": self.model,
            "engine": self.engine,
            "skipped": self.skipped,
            "bits_per_byte": self.bits_per_byte,
            "tokens": [self.token_json(index, sampler, top) for index in range(len(self.ids))],
            "next": self.place_json(len(self.ids), sampler, top),
        }

    def token_json(self, index: int, sampler: Sampler | None = None, top: int = SHOWN) -> dict[str, object]:
        """Return a token of the text, its log-probability and rank, and what could have been in its place."""
        return self.texts[index].to_json() | self.figures_json(index) | self.place_json(index, sampler, top)

    def figures_json(self, index: int) -> dict[str, object]:
        """Log-probability, probability and rank of a token of the text, and the entropy in its place, in nats."""
        logprob, distribution = self.logprob(index), self.before(index)
        return {
            "logprob": logprob,
            "probability": None if logprob is None else math.exp(logprob),
            "rank": int(self.positions.ranks[index - 1]) if index else None,
            "entropy": None if distribution is None else distribution.entropy,
        }

    def place_json(self, index: int, sampler: Sampler | None = None, top: int = SHOWN) -> dict[str, Any]:
        """Return entropy in nats, the `top` likeliest tokens, and all others, the likeliest first.

        The others are pairs of (how many, log of their mean probability).
        """
        distribution = self.before(index)
        if distribution is None:
            return {"entropy": None, "top": [], "tail": []}
        known = [[1, logprob] for logprob in distribution.logprobs[top:].tolist()]
        bins = zip(distribution.counts.tolist(), distribution.means.tolist(), strict=True)
        likeliest = self.alternatives(distribution, sampler, top)
        return {"entropy": distribution.entropy, "top": likeliest, "tail": [*known, *map(list, bins)]}


@dataclass(frozen=True)
class ReadingPair:
    """A text in two models. difference: in which their tokenizers differ, "" where both read the same tokens."""

    one: TextReading
    other: TextReading
    difference: str

    @classmethod
    def of(cls, one: TextReading, other: TextReading) -> "ReadingPair":
        return cls(one, other, tokenizer_difference(one.tokenizer, other.tokenizer))

    @property
    def gains(self) -> Sequence[float | None]:
        """Log-probability differences of the other model, nats a token; none where the tokens are not the same."""
        if self.difference:
            return []
        pairs = [(self.one.logprob(at), self.other.logprob(at)) for at in range(len(self.one.ids))]
        return [None if a is None or b is None else b - a for a, b in pairs]

    def to_json(self) -> dict[str, object]:
        return self.other.to_json() | {"difference": self.difference, "gains": list(self.gains)}
