"""Removal of control characters and terminal escapes, and line feeds for the line ends of other systems."""

import re
from typing import ClassVar

from pydantic import Field

from settle.data.cleaning import Cleaning, Note

_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
# all of C0 and C1 but tab, line feed and next line
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f]")


class ControlCharacters(Cleaning):
    """Writes line ends as line feeds and takes out control characters; drops a document that is full of them."""

    rank: ClassVar[int] = 20
    most: float = Field(0.1, ge=0, le=1, description="share of control characters above which a row is dropped")

    def mend(self, text: str, note: Note) -> str | None:
        if "\r" in text:
            note("mended", "line ends written as line feeds", 1)
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if _CONTROL.search(text) is None:
            return text
        mended, escapes = _ESCAPE.subn("", text) if "\x1b" in text else (text, 0)
        mended, controls = _CONTROL.subn("", mended)
        if controls > self.most * len(text):
            note("dropped", "mostly control characters", 1)
            return None
        note("mended", "control characters taken out", escapes + controls)
        return mended
