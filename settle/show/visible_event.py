"""The one gate to a terminal: no text of an event passes with a control character in it, whoever wrote the text."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from settle.base.events import AnswerChanges, AnswerText, Event, RowPreviews
from settle.base.visible import visible, visible_line

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
    if isinstance(value, str):
        return visible(value) if is_prose else visible_line(value)
    if isinstance(value, BaseModel):
        return value.model_copy(update={name: _shown(below, is_prose) for name, below in value})
    if isinstance(value, Mapping):
        return {_shown(key, False): _shown(below, is_prose) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_shown(below, is_prose) for below in value)
    return value
