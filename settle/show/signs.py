"""The signs that settle draws with, and what stands for them where an output is not Unicode."""

from typing import IO

OPEN, CLOSE = "⟦", "⟧"  # around what is learned
SPARKS = "▁▂▃▄▅▆▇█"


class SimpleSigns:
    """A stream whose encoding is not Unicode: signs that it cannot write are replaced by simpler ones."""

    SIGNS = str.maketrans(
        {"·": "|", "±": "+-", "–": "-", "≤": "<=", "…": "...", "✓": "ok", "✗": "FAILED", "→": "->", "›": ">"}
        | {"“": '"', "”": '"', OPEN: "[[", CLOSE: "]]"}
        | {spark: str(i) for i, spark in enumerate(SPARKS)}
    )

    def __init__(self, stream: IO[str], encoding: str) -> None:
        self._encoding = encoding
        self._stream = stream

    def write(self, text: str) -> int:
        simple = text.translate(self.SIGNS).encode(self._encoding, "replace").decode(self._encoding)
        return self._stream.write(simple)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
