"""Alpaca: instruction, input, output; with LLaMA-Factory's system prompt and history of earlier turns."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from settle.data.layouts import SYSTEM, Broken, Example, Message, RowLayout, check_turns, parsed, text_of, with_system
from settle.documents.rows import Values


class Alpaca(RowLayout):
    """An instruction with what it is about, and the answer."""

    rank: ClassVar[int] = 30
    usual: ClassVar[Mapping[str, Sequence[str]]] = {
        "instruction": ("instruction",),
        "output": ("output", "response"),
        "input": ("input", "context"),
        "system": SYSTEM,
        "history": ("history",),
    }
    needed: ClassVar[tuple[str, ...]] = ("instruction", "output")
    instruction: str | None = Field(None, description="the column of the instruction")
    input: str | None = Field(None, description="the column of what the instruction is about")
    output: str | None = Field(None, description="the column of the answer")
    system: str | None = Field(None, description="the column of the system prompt")

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
