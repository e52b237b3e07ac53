"""Adapts conversations to a chat template: probes which roles and forms it renders, and writes the others as text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from settle.base.chat_template import ChatTemplate, TemplateFailure, TemplateRunaway
from settle.data.layouts import Example, Message, Tool
from settle.data.rows.known_templates import TOOLS_AFTER, TOOLS_BEFORE

_MARK = "k7Qz"  # a word that no template writes of itself
_TOOL = {
    "type": "function",
    "function": {
        "name": f"tool{_MARK}",
        "description": "d",
        "parameters": {"type": "object", "properties": {"a": {"type": "string", "description": "d"}}},
    },
}


class TemplateAdapter:
    """Which roles and forms one template renders. notes: what was written otherwise, in words for people; has_system:
    whether the template renders system prompts.
    """

    def __init__(self, template: ChatTemplate | None, arguments: Mapping[str, object]) -> None:
        self._template, self._arguments = template, dict(arguments)
        self.notes: set[str] = set()
        self.has_system = False
        if template is None:
            return
        self.has_system = self._renders([_message("system", _MARK), _message("user", "q")])
        self._has_tools = self._renders([_message("user", "q")], [_TOOL])
        # calls as templates want them: arguments as an object or as its JSON, beside an empty content or none at all
        forms = [(as_text, empty) for as_text in (False, True) for empty in ("", None)]
        self._form = next((form for form in forms if self._renders(_called(_MARK, *form), escaped=False)), None)
        answer = [_result(_MARK), _message("assistant", "a")]
        self._has_results = self._form is not None and self._renders([*_called("b", *self._form)[:2], *answer])

    def asking(self, example: Example) -> Example:
        """An example with its last answer as it was read, and all before that as the template takes it."""
        if self._template is None or example.kind == "text":
            return example
        before = example.messages if example.kind == "preference" else example.messages[:-1]
        messages, tools = self.spoken(before, example.tools)
        return replace(example, messages=[*messages, *example.messages[len(before) :]], tools=tools)

    def spoken(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[list[Message], list[Tool]]:
        """Messages and tools as the template takes them."""
        spoken = [_with_thought(message) for message in messages]
        if tools and not self._has_tools:
            self.notes.add("the chat template knows no tools: they are put into the system prompt")
            spoken = _with_tools(spoken, tools)
            tools = []
        if any("tool_calls" in message for message in spoken):
            spoken = self._calls(spoken)
        if any(message["role"] == "tool" for message in spoken) and not self._has_results:
            self.notes.add("the chat template knows no tool results: they are written as a user's turn")
            spoken = _results_as_user(spoken)
        if spoken[0]["role"] == "system" and not self.has_system:
            self.notes.add("the chat template knows no system prompt: it is put before the first question")
            spoken = _without_system(spoken)
        return spoken, list(tools)

    def _calls(self, messages: list[Message]) -> list[Message]:
        if self._form is None:
            self.notes.add("the chat template knows no tool calls: they are written as <tool_call>{…}</tool_call>")
            return [_call_as_text(message) if "tool_calls" in message else message for message in messages]
        form = self._form
        return [_in_form(message, *form) if "tool_calls" in message else message for message in messages]

    def _renders(self, messages: list[Message], tools: list[Tool] | None = None, escaped: bool = True) -> bool:
        """Whether the mark comes through; unless `escaped`, as JSON and neither as Python nor as a string in JSON."""
        assert self._template is not None
        try:
            text = self._template.render(messages, tools, True, **self._arguments)
        except TemplateRunaway:
            raise
        except TemplateFailure:
            return False
        return _MARK in text and (escaped or f"'{_MARK}'" not in text and f'\\"{_MARK}\\"' not in text)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _called(value: str, as_text: bool, empty: str | None) -> list[Message]:
    """A conversation in which a tool is called with that value."""
    call = {"type": "function", "id": "000000000", "function": {"name": "f", "arguments": {"a": value}}}
    asking = _in_form({"role": "assistant", "content": "", "tool_calls": [call]}, as_text, empty)
    return [_message("user", "q"), asking, _result("r"), _message("assistant", "a")]


def _result(content: str) -> Message:
    return {"role": "tool", "content": content, "tool_call_id": "000000000", "name": "f"}


def _with_thought(message: Message) -> Message:
    """A thought under each of the names by which templates ask for it."""
    thought = message.get("reasoning_content")
    return dict(message) if thought is None else message | {"reasoning": thought, "thinking": thought}


def _without_system(messages: list[Message]) -> list[Message]:
    system, question, *others = messages
    return [question | {"content": f"{system['content']}\n\n{question['content']}"}, *others]


def _with_tools(messages: list[Message], tools: Sequence[Tool]) -> list[Message]:
    """The tools in the system prompt."""
    listed = "\n".join(map(_json, tools))
    prompt = f"{TOOLS_BEFORE}{listed}{TOOLS_AFTER}"
    if messages[0]["role"] == "system":
        return [_message("system", f"{messages[0]['content']}\n\n{prompt}"), *messages[1:]]
    return [_message("system", prompt), *messages]


def _call_as_text(message: Message) -> Message:
    written = [f"<tool_call>\n{_json(call['function'])}\n</tool_call>" for call in message["tool_calls"]]
    others = {key: value for key, value in message.items() if key != "tool_calls"}
    return others | {"content": "\n".join(filter(None, [message["content"], *written]))}


def _in_form(message: Message, as_text: bool, empty: str | None) -> Message:
    """A message with calls in the form that a template wants."""
    calls = message["tool_calls"]
    if as_text:
        functions = [call["function"] for call in calls]
        written = [function | {"arguments": _json(function["arguments"])} for function in functions]
        calls = [call | {"function": function} for call, function in zip(calls, written, strict=True)]
    return message | {"content": message["content"] or empty, "tool_calls": calls}


def _results_as_user(messages: list[Message]) -> list[Message]:
    """Results that follow each other, and a question after them, share one turn."""
    spoken: list[Message] = []
    for message in messages:
        if message["role"] == "tool":
            message = _message("user", f"<tool_response>\n{message['content']}\n</tool_response>")
            joins = spoken and spoken[-1].get("results")
            if joins:
                spoken[-1] = spoken[-1] | {"content": f"{spoken[-1]['content']}\n{message['content']}"}
            else:
                spoken.append(message | {"results": True})
        elif message["role"] == "user" and spoken and spoken[-1].get("results"):
            spoken[-1] = _message("user", f"{spoken[-1]['content']}\n\n{message['content']}")
        else:
            spoken.append(message)
    return [{key: value for key, value in message.items() if key != "results"} for message in spoken]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
