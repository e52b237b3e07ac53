"""Conversations: OpenAI's `messages` with role and content, ShareGPT's `conversations` with from and value."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from settle.data.layouts import Example, Kind, Message, RowLayout, check_turns, find, parsed, read_tools, read_turns
from settle.documents.rows import Values


class Messages(RowLayout):
    """A list of turns, with the tools that may be called and a system prompt where the row has them."""

    rank: ClassVar[int] = 20
    kind: ClassVar[Kind] = "chat"
    messages: str | None = Field(None, description="the column of the turns")
    system: str | None = Field(None, description="the column of the system prompt")
    tools: str | None = Field(None, description="the column of the tools")

    def columns(self, record: Values) -> dict[str, str] | None:
        turns = find(record, self.messages, ("messages", "conversations", "conversation", "turns", "dialog"))
        if turns is None or not isinstance(parsed(record[turns]), list):
            return None
        columns = {
            "messages": turns,
            "system": find(record, self.system, ("system", "system_prompt")),
            "tools": find(record, self.tools, ("tools", "functions")),
        }
        return {what: column for what, column in columns.items() if column is not None}

    def example(self, record: Values, columns: Mapping[str, str]) -> Example:
        messages = with_system(record, columns, read_turns(record[columns["messages"]]))
        last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=len(messages) - 1)
        mended = "turns after the last answer left out" if last < len(messages) - 1 else ""
        messages = messages[: last + 1]
        check_turns(messages)
        return Example("chat", messages, read_tools(record.get(columns.get("tools", ""))), mended=mended)


def with_system(record: Values, columns: Mapping[str, str], messages: list[Message]) -> list[Message]:
    """Return the turns with the row's system prompt in front, if it has one of its own."""
    prompt = record.get(columns.get("system", ""))
    if isinstance(prompt, str) and prompt.strip() and messages[0]["role"] != "system":
        return [{"role": "system", "content": prompt}, *messages]
    return messages
