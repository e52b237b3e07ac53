"""Preference pairs: a prompt with a better and a worse answer, as text, as turns, or as ends of one conversation."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from settle.data.layouts import (
    SYSTEM,
    TOOLS,
    Broken,
    Example,
    Kind,
    Message,
    RowLayout,
    check_turns,
    find,
    parsed_turns,
    read_dialogue,
    read_tools,
    read_turns,
    text_of,
    with_system,
)
from settle.documents.rows import Values


class Preference(RowLayout):
    """chosen and rejected, after a prompt or a conversation; without one, what both begin with is the prompt."""

    rank: ClassVar[int] = 10
    kind: ClassVar[Kind] = "preference"
    usual: ClassVar[Mapping[str, Sequence[str]]] = {
        "prompt": ("prompt", "question", "conversations", "messages", "instruction", "input"),
        "chosen": ("chosen", "preferred_output", "preferred"),
        "rejected": ("rejected", "non_preferred_output"),
        "about": ("input",),
        "system": SYSTEM,
        "tools": TOOLS,
    }
    needed: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    prompt: str | None = Field(None, description="the column of the prompt or of the turns before the answers")
    chosen: str | None = Field(None, description="the column of the better answer")
    rejected: str | None = Field(None, description="the column of the worse answer")
    system: str | None = Field(None, description="the column of the system prompt")
    tools: str | None = Field(None, description="the column of the tools")

    def columns(self, record: Values) -> dict[str, str] | None:
        columns = super().columns(record)
        if columns and columns.get("prompt") != find(record, None, ("instruction",)):
            columns.pop("about", None)  # only an instruction is followed by what it is about
        return columns

    def example(self, record: Values, columns: Mapping[str, str]) -> Example:
        chosen, rejected = (_answer(record, columns, what) for what in ("chosen", "rejected"))
        if "prompt" in columns:
            messages = _prompt(record, columns)
        else:
            same = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
            if not same:
                raise Broken("no prompt that both answers share")
            messages, chosen, rejected = chosen[:same], chosen[same:], rejected[same:]
        messages = with_system(record, columns, messages)
        if messages[-1]["role"] == "assistant":
            raise Broken("a prompt that ends with an answer")
        for answer in (chosen, rejected):
            check_turns([*messages, *answer])
            if not answer or answer[-1]["role"] != "assistant":
                raise Broken("no answer")
        if chosen == rejected:
            raise Broken("chosen and rejected are the same")
        tools = read_tools(record.get(columns.get("tools", "")))
        return Example("preference", messages, tools, chosen=chosen, rejected=rejected)


def _answer(record: Values, columns: Mapping[str, str], what: str) -> list[Message]:
    value = parsed_turns(record[columns[what]])
    if isinstance(value, dict | list):
        messages = read_turns(value if isinstance(value, list) else [value])
        # with a prompt of its own the row may still repeat it in both answers
        if "prompt" in columns and len(messages) > 1:
            prompt = with_system(record, columns, _prompt(record, columns))
            for before in (prompt, [m for m in prompt if m["role"] != "system"]):
                if messages[: len(before)] == before:
                    return messages[len(before) :]
        return messages
    if "prompt" not in columns:
        return read_dialogue(text_of(record, columns[what], f"the {what} answer"))
    return [{"role": "assistant", "content": text_of(record, columns[what], f"the {what} answer")}]


def _prompt(record: Values, columns: Mapping[str, str]) -> list[Message]:
    match parsed_turns(record[columns["prompt"]]):
        case {"messages": [*turns]} | [*turns]:
            return read_turns(turns)
    text = text_of(record, columns["prompt"], "the prompt")
    about = text_of(record, columns["about"], "the input") if "about" in columns else ""
    return [{"role": "user", "content": "\n\n".join(filter(str.strip, (text, about)))}]
