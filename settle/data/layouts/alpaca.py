"""Alpaca: instruction, input, output; with LLaMA-Factory's system prompt and history of earlier turns."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from settle.data.layouts import Broken, Example, Kind, Message, RowLayout, check_turns, find, parsed, text_of
from settle.data.layouts.messages import with_system
from settle.documents.rows import Values


class Alpaca(RowLayout):
    """An instruction with what it is about, and the answer."""

    rank: ClassVar[int] = 30
    kind: ClassVar[Kind] = "chat"
    instruction: str | None = Field(None, description="the column of the instruction")
    input: str | None = Field(None, description="the column of what the instruction is about")
    output: str | None = Field(None, description="the column of the answer")
    system: str | None = Field(None, description="the column of the system prompt")

    def columns(self, record: Values) -> dict[str, str] | None:
        columns = {
            "instruction": find(record, self.instruction, ("instruction",)),
            "output": find(record, self.output, ("output", "response")),
            "input": find(record, self.input, ("input", "context")),
            "system": find(record, self.system, ("system", "system_prompt")),
            "history": find(record, None, ("history",)),
        }
        if columns["instruction"] is None or columns["output"] is None:
            return None
        return {what: column for what, column in columns.items() if column is not None}

    def example(self, record: Values, columns: Mapping[str, str]) -> Example:
        instruction = text_of(record, columns["instruction"], "the instruction")
        about = text_of(record, columns["input"], "the input") if "input" in columns else ""
        messages = _history(record.get(columns.get("history", "")))
        messages += [
            {"role": "user", "content": "\n\n".join(filter(str.strip, (instruction, about)))},
            {"role": "assistant", "content": text_of(record, columns["output"], "the output")},
        ]
        messages = with_system(record, columns, messages)
        check_turns(messages)
        return Example("chat", messages, single=len(messages) == 2)


def _history(value: object) -> list[Message]:
    turns = parsed(value) or []
    if not isinstance(turns, list) or not all(isinstance(t, list) and len(t) == 2 for t in turns):
        raise Broken("a history that is no list of question and answer")
    texts = [text for turn in turns for text in turn]
    if not all(isinstance(text, str) for text in texts):
        raise Broken("a history that is no list of question and answer")
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
