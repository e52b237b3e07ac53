"""Conversations: OpenAI's `messages` with role and content, ShareGPT's `conversations` with from and value."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from settle.data.layouts import (
    SYSTEM,
    TOOLS,
    Example,
    RowLayout,
    check_turns,
    parsed,
    read_tools,
    read_turns,
    with_system,
)
from settle.documents.rows import Values


class Messages(RowLayout):
    """A list of turns, with the tools that may be called and a system prompt where the row has them."""

    rank: ClassVar[int] = 20
    usual: ClassVar[Mapping[str, Sequence[str]]] = {
        "messages": ("messages", "conversations", "conversation", "turns", "dialog"),
        "system": SYSTEM,
        "tools": TOOLS,
    }
    needed: ClassVar[tuple[str, ...]] = ("messages",)
    messages: str | None = Field(None, description="the column of the turns")
    system: str | None = Field(None, description="the column of the system prompt")
    tools: str | None = Field(None, description="the column of the tools")

    def columns(self, record: Values) -> dict[str, str] | None:
        columns = super().columns(record)
        return columns if columns and isinstance(parsed(record[columns["messages"]]), list) else None

    def example(self, record: Values, columns: Mapping[str, str]) -> Example:
        messages = with_system(record, columns, read_turns(record[columns["messages"]]))
        last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=len(messages) - 1)
        mended = "turns after the last answer left out" if last < len(messages) - 1 else ""
        messages = messages[: last + 1]
        check_turns(messages)
        return Example("chat", messages, read_tools(record.get(columns.get("tools", ""))), mended=mended)
