"""Alpaca: instruction, input, output; with LLaMA-Factory's system prompt and history of earlier turns."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field, StrictStr, TypeAdapter, ValidationError

from settle.data.layouts import SYSTEM, Broken, Example, Message, RowLayout, check_turns, parsed, text_of, with_system
from settle.documents.rows import Values

_PAIRS = TypeAdapter(list[tuple[StrictStr, StrictStr]])


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
    try:
        pairs = _PAIRS.validate_python(turns)
    except ValidationError:
        raise Broken("a history that is no list of question and answer") from None
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]
