"""Chat templates: those for models that come without one, and how conversations are adapted to any of them.

A model that knows the special tokens of a turn was meant to be talked to in that way; one that knows none takes turns
in plain words, each answer ended by its end-of-text token. Roles: system, user, assistant. A template is probed for
which roles and forms it renders; the others are written as text.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from settle.base.chat_template import ChatTemplate, TemplateFailure, TemplateRunaway
from settle.data.layouts import Example, Message, Tool

# how tools are told, called and answered: between the tags of Hermes and Qwen, which most servers read
TOOLS_BEFORE = "# Tools\n\nThese functions may be called, each described in JSON:\n<tools>\n"
TOOLS_AFTER = (
    "\n</tools>\n\nTo call one, answer with its name and its arguments:\n"
    '<tool_call>\n{"name": "the function\'s name", "arguments": {}}\n</tool_call>'
)
_MARK = "k7Qz"  # a word that no template writes of itself
_TOOL = {
    "type": "function",
    "function": {
        "name": f"tool{_MARK}",
        "description": "d",
        "parameters": {"type": "object", "properties": {"a": {"type": "string", "description": "d"}}},
    },
}


def _quoted(text: str) -> str:
    """Return a text as a template writes it."""
    return "'" + text.replace("'", "\\'").replace("\n", "\\n") + "'"


CHATML = (
    "{%- if tools -%}"
    "{{- '<|im_start|>system\\n' -}}"
    "{%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif -%}"
    f"{{{{- {_quoted(TOOLS_BEFORE)} -}}}}"
    "{%- for tool in tools -%}{{- ('' if loop.first else '\\n') + (tool | tojson) -}}{%- endfor -%}"
    f"{{{{- {_quoted(TOOLS_AFTER)} + '<|im_end|>\\n' -}}}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}"
    "{{- '<|im_start|>assistant\\n' + (message.content or '') -}}"
    "{%- for call in message.tool_calls or [] -%}"
    "{{- '' if loop.first and not message.content else '\\n' -}}"
    '{{- \'<tool_call>\\n{"name": "\' + call.function.name + \'", "arguments": \' -}}'
    "{{- call.function.arguments | tojson }}{{ '}\\n</tool_call>' -}}"
    "{%- endfor -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- elif message.role == 'tool' -%}"
    "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif -%}"
    "{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' -}}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif -%}"
    "{%- elif not (tools and loop.first and message.role == 'system') -%}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}"
)
GEMMA = (
    "{{- bos_token -}}"
    "{%- set told = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' -%}"
    "{%- for message in (messages[1:] if told else messages) -%}"
    "{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\\n' -}}"
    "{{- (told if loop.first else '') + message.content | trim + '<end_of_turn>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif -%}"
)
LLAMA3 = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif -%}"
)
TURNS = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}"
    "{{- '### Assistant:\\n' + message.content + eos_token + '\\n\\n' -}}"
    "{%- else -%}"
    "{{- '### ' + message.role | capitalize + ':\\n' + message.content + '\\n\\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif -%}"
)
KNOWN = {"chatml": CHATML, "gemma": GEMMA, "llama3": LLAMA3, "turns": TURNS}
_TOKENS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}


def fitting(tokens: Collection[str]) -> str:
    """Return the name of the template for a model whose vocabulary has `tokens`."""
    return next((name for name, needed in _TOKENS.items() if all(t in tokens for t in needed)), "turns")


class TemplateAdapter:
    """Adapter of conversations to one template: which roles and forms it renders.

    notes: what was written otherwise, for the user. has_system: whether the template renders system prompts.
    """

    def __init__(self, template: ChatTemplate | None, arguments: Mapping[str, object]) -> None:
        self._template = template
        self.notes: set[str] = set()
        self.has_system = False
        if template is None:
            return
        renders = partial(_renders, template, dict(arguments))
        self.has_system = renders([_message("system", _MARK), _message("user", "q")])
        self._has_tools = renders([_message("user", "q")], [_TOOL])
        # calls as templates want them: arguments as an object or as its JSON, beside an empty content or none at all
        forms = [(as_text, empty) for as_text in (False, True) for empty in ("", None)]
        self._form = next((form for form in forms if renders(_called(_MARK, *form), escaped=False)), None)
        answer = [_result(_MARK), _message("assistant", "a")]
        self._has_results = self._form is not None and renders([*_called("b", *self._form)[:2], *answer])

    def asking(self, example: Example) -> Example:
        """Return an example with its last answer as it was read, and all before that as the template takes it."""
        if self._template is None or example.kind == "text":
            return example
        before = example.messages if example.kind == "preference" else example.messages[:-1]
        messages, tools = self.spoken(before, example.tools)
        return replace(example, messages=[*messages, *example.messages[len(before) :]], tools=tools)

    def spoken(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[list[Message], list[Tool]]:
        """Return messages and tools as the template takes them."""
        spoken = [_with_thought(message) for message in messages]
        if tools and not self._has_tools:
            self.notes.add("the chat template knows no tools: they are put into the system prompt")
            spoken = _with_tools(spoken, tools)
            tools = []
        if any("tool_calls" in message for message in spoken):
            if self._form is None:
                self.notes.add("the chat template knows no tool calls: they are written as <tool_call>{…}</tool_call>")
            spoken = [self._call(message) if "tool_calls" in message else message for message in spoken]
        if any(message["role"] == "tool" for message in spoken) and not self._has_results:
            self.notes.add("the chat template knows no tool results: they are written as a user's turn")
            spoken = _results_as_user(spoken)
        if spoken[0]["role"] == "system" and not self.has_system:
            self.notes.add("the chat template knows no system prompt: it is put before the first question")
            spoken = _without_system(spoken)
        return spoken, list(tools)

    def _call(self, message: Message) -> Message:
        return _call_as_text(message) if self._form is None else _in_form(message, *self._form)


def _renders(
    template: ChatTemplate,
    arguments: Mapping[str, object],
    messages: list[Message],
    tools: list[Tool] | None = None,
    escaped: bool = True,
) -> bool:
    """Return whether the mark is rendered; unless `escaped`, neither as Python nor as a string in JSON."""
    try:
        text = template.render(messages, tools, True, **arguments)
    except TemplateRunaway:
        raise
    except TemplateFailure:
        return False
    return _MARK in text and (escaped or f"'{_MARK}'" not in text and f'\\"{_MARK}\\"' not in text)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _called(value: str, as_text: bool, empty: str | None) -> list[Message]:
    """Return a conversation in which a tool is called with that value."""
    call = {"type": "function", "id": "000000000", "function": {"name": "f", "arguments": {"a": value}}}
    asking = _in_form({"role": "assistant", "content": "", "tool_calls": [call]}, as_text, empty)
    return [_message("user", "q"), asking, _result("r"), _message("assistant", "a")]


def _result(content: str) -> Message:
    return {"role": "tool", "content": content, "tool_call_id": "000000000", "name": "f"}


def _with_thought(message: Message) -> Message:
    """Return a message with its thought under each of the names by which templates ask for it."""
    thought = message.get("reasoning_content")
    return dict(message) if thought is None else message | {"reasoning": thought, "thinking": thought}


def _without_system(messages: list[Message]) -> list[Message]:
    system, question, *others = messages
    return [question | {"content": f"{system['content']}\n\n{question['content']}"}, *others]


def _with_tools(messages: list[Message], tools: Sequence[Tool]) -> list[Message]:
    """Return messages with the tools in the system prompt."""
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
    """Return a message with calls in the form that a template wants."""
    calls = message["tool_calls"]
    if as_text:
        functions = [call["function"] for call in calls]
        written = [function | {"arguments": _json(function["arguments"])} for function in functions]
        calls = [call | {"function": function} for call, function in zip(calls, written, strict=True)]
    return message | {"content": message["content"] or empty, "tool_calls": calls}


def _results_as_user(messages: list[Message]) -> list[Message]:
    """Return messages with results as a user's turn, which those that follow each other, and a question, share."""
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
