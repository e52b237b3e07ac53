"""Removal of what is no text: bytes that were not decoded, control characters, other systems' line ends."""

import re
from typing import ClassVar

from pydantic import Field

from settle.data.cleaning import Cleaning, Note

_REPLACEMENT, _MARK = "\ufffd", "\ufeff"
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
# all of C0 and C1 but tab, line feed and next line
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f]")


class Characters(Cleaning):
    """Takes out what could not be decoded and control characters; drops a document that is full of them."""

    rank: ClassVar[int] = 10
    most: float = Field(
        0.1, ge=0, le=1, description="share of broken, or of control characters above which a row is dropped"
    )

    def mend(self, text: str, note: Note) -> str | None:
        decoded = text if text.isascii() else self._decoded(text, note)
        return None if decoded is None else self._printable(decoded, note)

    def _decoded(self, text: str, note: Note) -> str | None:
        """Take out replacement characters, lone surrogates and byte-order marks."""
        try:
            text.encode()
        except UnicodeEncodeError:
            # two halves of a pair, written as two escapes, become the character they mean
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        broken = text.count(_REPLACEMENT)
        if broken > self.most * len(text):
            note("dropped", "no text in a known encoding", 1)
            return None
        if broken:
            note("mended", "invalid bytes taken out", broken)
        return text.replace(_REPLACEMENT, "").replace(_MARK, "")

    def _printable(self, text: str, note: Note) -> str | None:
        """Take out control characters and terminal escapes, and write line ends as line feeds."""
        if "\r" in text:
            note("mended", "line ends written as line feeds", 1)
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if _CONTROL.search(text) is None:
            return text
        mended, escapes = _ESCAPE.subn("", text)
        mended, controls = _CONTROL.subn("", mended)
        if controls > self.most * len(text):
            note("dropped", "mostly control characters", 1)
            return None
        note("mended", "control characters taken out", escapes + controls)
        return mended
