"""Layouts: one file a way to write examples. A layout recognises its rows by their columns, and reads them."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from settle.base.registry import Part
from settle.documents.rows import Values

# role, content; with tool_calls, tool_call_id, reasoning_content, name or weight where the row has them
Message = dict[str, Any]
Tool = dict[str, Any]  # the JSON schema of a function
Kind = Literal["chat", "text", "preference", "decision"]


class Broken(Exception):
    """A row that cannot be used; the reason is a short phrase, the same for every row that it applies to."""


@dataclass(frozen=True)
class Example:
    """One row, whatever it was written as.

    messages: of a chat all turns, of a preference those before the answer. chosen, rejected: the two answers' turns.
    text: of plain text. single: whether the row is one prompt and one completion. mended: what was changed in reading
    it.
    """

    kind: Kind
    messages: list[Message] = field(default_factory=list)
    tools: list[Tool] = field(default_factory=list)
    text: str = ""
    chosen: list[Message] = field(default_factory=list)
    rejected: list[Message] = field(default_factory=list)
    single: bool = False
    mended: str = ""


class RowLayout(Part):
    """One way to write rows. Its settings name its columns; layouts are tried in the order of `rank`."""

    rank: ClassVar[int]
    kind: ClassVar[Kind]

    @abstractmethod
    def columns(self, record: Values) -> dict[str, str] | None:
        """Return which column holds what, or None when the record is not a row of this layout."""

    @abstractmethod
    def example(self, record: Values, columns: Mapping[str, str]) -> Example:
        """Return the example in a row. Raises Broken with what is wrong with it."""


def find(record: Values, column: str | None, usual: Sequence[str]) -> str | None:
    """Return the column that is asked for, or the first of the usual names that is there, whatever its case."""
    if column is not None:
        return column if column in record else None
    lowered = {str(key).lower(): key for key in record}
    return next((lowered[name] for name in usual if name in lowered), None)


def text_of(record: Values, column: str, what: str) -> str:
    """Return a column's text. Raises Broken for other values; a number is text too, and nothing is empty text."""
    value = record[column]
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Broken(f"{what} is no text")
    return str(value)
