"""A prompt and its completion, under any of their usual names: question and answer, input and output, and so on."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from settle.data.layouts import (
    SYSTEM,
    TOOLS,
    Example,
    RowLayout,
    check_turns,
    parsed_turns,
    read_tools,
    read_turns,
    text_of,
    with_system,
)
from settle.documents.rows import Values

# the first that is there; a text or an article is a prompt where something stands beside it that answers to it
PROMPTS = ("prompt", "question", "query", "problem", "instruction", "input", "source", "text", "document", "article")
COMPLETIONS = (
    *("completion", "answer", "response", "output", "solution", "target", "summary", "highlights", "translation"),
    "label",
)


class PromptCompletion(RowLayout):
    """Two columns of text, or of turns: what is given and what is to be answered."""

    rank: ClassVar[int] = 40
    usual: ClassVar[Mapping[str, Sequence[str]]] = {
        "prompt": PROMPTS,
        "completion": COMPLETIONS,
        "system": SYSTEM,
        "tools": TOOLS,
    }
    needed: ClassVar[tuple[str, ...]] = ("prompt", "completion")
    prompt: str | None = Field(None, description="the column of the prompt")
    completion: str | None = Field(None, description="the column of the completion")
    system: str | None = Field(None, description="the column of the system prompt")
    tools: str | None = Field(None, description="the column of the tools")

    def example(self, record: Values, columns: Mapping[str, str]) -> Example:
        prompt, completion = (parsed_turns(record[columns[what]]) for what in ("prompt", "completion"))
        if isinstance(prompt, list) and isinstance(completion, list):
            messages = read_turns(prompt + completion)
        else:
            messages = [
                {"role": "user", "content": text_of(record, columns["prompt"], "the prompt")},
                {"role": "assistant", "content": text_of(record, columns["completion"], "the completion")},
            ]
        messages = with_system(record, columns, messages)
        check_turns(messages)
        tools = read_tools(record.get(columns.get("tools", "")))
        return Example("chat", messages, tools, single=len(messages) == 2 and messages[0]["role"] == "user")
