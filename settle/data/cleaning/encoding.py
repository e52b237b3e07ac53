"""Removal of what was not decoded right: replacement characters, lone surrogates, byte-order marks."""

from typing import ClassVar

from pydantic import Field

from settle.data.cleaning import Cleaning, Note

_REPLACEMENT, _MARK = "\ufffd", "\ufeff"


class Encoding(Cleaning):
    """Takes out what could not be decoded; drops a document that is mostly that."""

    rank: ClassVar[int] = 10
    most_broken: float = Field(0.1, ge=0, le=1, description="share of broken characters above which a row is dropped")

    def mend(self, text: str, note: Note) -> str | None:
        if text.isascii():
            return text
        try:
            text.encode()
        except UnicodeEncodeError:
            # two halves of a pair, written as two escapes, become the character they mean
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        broken = text.count(_REPLACEMENT)
        if broken > self.most_broken * len(text):
            note("dropped", "no text in a known encoding", 1)
            return None
        if broken:
            note("mended", "invalid bytes taken out", broken)
            text = text.replace(_REPLACEMENT, "")
        return text.replace(_MARK, "") if _MARK in text else text
