"""Tokens as people read them: special ones by their name, bytes that are no whole character by their numbers."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from settle.base.tokenizer import Tokenizer


class TokenText(NamedTuple):
    """text: what a token stands for; the name of a special one; `<0xE2><0x82>` where it is a piece of a character.
    whole: the characters that such a piece belongs to with its neighbours, "" for other tokens."""

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
    """The tokens of a text in order; pieces of a character know it."""
    texts = [token_text(tokenizer, token) for token in ids]
    for first, last in _pieces(tokenizer, ids):
        raw = b"".join(tokenizer.token_bytes[token] for token in ids[first:last])
        whole = raw.decode("utf-8", "replace")
        texts[first:last] = [text._replace(whole=whole) for text in texts[first:last]]
    return texts


def _pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of tokens that are no whole characters alone, each as (first, behind the last): as short as gives whole
    characters together."""
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
    """Of a token that stands for no text; a vocabulary may be padded with ids that have no token."""
    return tokenizer.tokens[token] if token < tokenizer.vocab_size else f"[{token}]"
