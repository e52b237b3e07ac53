"""Signs that a terminal shows: for control characters, and where its encoding is not Unicode, simpler ones."""

from collections.abc import Mapping
from typing import IO, Any, TypeVar

from pydantic import BaseModel

from settle.base.events import AnswerChanges, AnswerText, Event, RowPreviews
from settle.base.visible import visible, visible_line

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


E = TypeVar("E", bound=Event)
PROSE = AnswerText | RowPreviews | AnswerChanges  # their text may have several lines


def visible_event(event: E) -> E:
    """Return the event with visible signs in place of control characters.

    Where a text is a line of a table or a sentence, a line break in it is a sign too: nothing that a name holds begins
    a line of its own.
    """
    shown: E = _shown(event, isinstance(event, PROSE))
    return shown


def _shown(value: Any, is_prose: bool) -> Any:
    match value:
        case str():
            return visible(value) if is_prose else visible_line(value)
        case BaseModel():
            return value.model_copy(update={name: _shown(below, is_prose) for name, below in value})
        case Mapping():
            return {_shown(key, False): _shown(below, is_prose) for key, below in value.items()}
        case list() | tuple():
            return type(value)(_shown(below, is_prose) for below in value)
    return value
