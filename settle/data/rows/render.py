"""Examples → text with the places that are supervised: what the model has to write after the prompt.

No markers in the template are needed. The prompt of an answer is the conversation before it, rendered with the
generation prompt, as any server renders it; the answer is what the template puts after that, up to and with the token
that ends the turn. Where a template changes earlier turns once later ones follow (it drops thoughts, or moves the
tools), an answer that no longer reads as it was written becomes a row of its own.

A model that comes without a template gets one: that of the special tokens of a turn which it knows, or else turns in
plain words, each answer ended by its end-of-text token. A template is probed for which roles and forms it renders; the
others are written as text.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from settle.base.chat_template import ChatTemplate, TemplateFailure, TemplateRunaway
from settle.data.layouts import Broken, Example, Message, Tool

# how tools are told, called and answered: between the tags of Hermes and Qwen, which most servers read
TOOLS_BEFORE = "# Tools\n\nThese functions may be called, each described in JSON:\n<tools>\n"
TOOLS_AFTER = (
    "\n</tools>\n\nTo call one, answer with its name and its arguments:\n"
    '<tool_call>\n{"name": "the function\'s name", "arguments": {}}\n</tool_call>'
)
Variables = Mapping[str, object]  # what a template is given beside messages and tools
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

    def __init__(self, template: ChatTemplate | None, arguments: Variables) -> None:
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
    arguments: Variables,
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


_THOUGHT = re.compile(r"</?think(?:ing)?>")


@dataclass(frozen=True)
class RenderedAnswer:
    """One answer: its characters in the text, its end-of-turn marker with it, and the texts that they must contain."""

    start: int
    end: int
    says: tuple[str, ...]  # in this order
    supervised: bool


@dataclass(frozen=True)
class Rendered:
    """A row as text.

    everything: whether all of it is supervised; otherwise its answers are, each as it says. unended: the template ends
    the last answer with no token that stops, and the tokenizer's own has to be added.
    """

    text: str
    answers: tuple[RenderedAnswer, ...]
    everything: bool = False
    unended: bool = False


@dataclass(frozen=True)
class _Turn:
    """An answer: the prompt before it, what is to be written with the end of it, and whether that end is missing."""

    prompt: str
    answer: str
    says: tuple[str, ...]
    unended: bool


class Renderer:
    """Renderer of examples.

    template: None for prompt and completion as they are. stops: texts of the tokens that end a turn. controls: of all
    tokens that no turn may contain.
    """

    def __init__(
        self,
        template: ChatTemplate | None,
        stops: Sequence[str],
        controls: Sequence[str],
        supervise: str,
        arguments: Variables,
    ) -> None:
        self._template = template
        self._supervise = supervise
        self._arguments = dict(arguments)
        self._stop, self._control = _any_of(stops), _any_of(controls)
        self.source = template.source if template else None
        self.adapter = TemplateAdapter(template, self._arguments)

    def rows(self, example: Example) -> list[Rendered]:
        """Return a chat's or a text's rows: one, or more where the template changes earlier turns. Raises Broken."""
        if example.kind == "text":
            return [Rendered(example.text, (), everything=True, unended=True)]
        if any(self._control.search(message["content"]) for message in example.messages):
            raise Broken("a special token of the model within a turn")
        if self._template is None:
            return [self._plain(example)]
        try:
            return self._chat(self._template, example)
        except TemplateRunaway:
            raise
        except TemplateFailure as e:
            raise Broken(e.what) from None

    def pair(self, example: Example) -> tuple[Rendered, Rendered]:
        """Return a preference's two rows, chosen and rejected. Raises Broken."""
        both = []
        for answer in (example.chosen, example.rejected):
            whole = Example("chat", [*example.messages, *answer], example.tools, single=len(example.messages) == 1)
            rows = self.rows(whole)
            if len(rows) != 1:
                raise Broken("an answer of several turns that the template changes")
            both.append(rows[0])
        return both[0], both[1]

    def _plain(self, example: Example) -> Rendered:
        if not example.single:
            raise Broken("a conversation, and no template to render it")
        prompt, completion = (message["content"] for message in example.messages)
        answer = RenderedAnswer(len(prompt), len(prompt) + len(completion), (completion.strip(),), True)
        return Rendered(prompt + completion, (answer,), self._supervise == "all", unended=True)

    def _chat(self, template: ChatTemplate, example: Example) -> list[Rendered]:
        messages, tools = self.adapter.spoken(example.messages, example.tools)
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        supervised = dict(zip(answers, self._wanted(example.messages), strict=True))
        if not any(supervised.values()):
            raise Broken("no answer that is supervised")
        # from the last to the first: an answer is found in a row that was rendered for a later one, or has its own
        rows: list[tuple[str, list[RenderedAnswer], bool]] = []
        numbers = sorted(supervised, reverse=True)
        cuts = [cut for number in numbers for cut in ((number, True), (number + 1, False))]
        texts = iter(template.render_cuts(messages, cuts, tools or None, self._arguments))
        for number in numbers:
            turn = self._turn(messages[number], next(texts), next(texts))
            text = turn.prompt + turn.answer
            answer = RenderedAnswer(len(turn.prompt), len(text), turn.says, supervised[number])
            home = next((row for row in rows if row[0].startswith(text) and not turn.unended), None)
            if home is not None:
                home[1].append(answer)
            elif supervised[number]:
                rows.append((text, [answer], turn.unended))
        everything = self._supervise == "all"
        return [Rendered(text, tuple(answers[::-1]), everything, unended) for text, answers, unended in rows[::-1]]

    def _wanted(self, messages: Sequence[Message]) -> list[bool]:
        """Return whether each answer of the conversation is supervised."""
        answers = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        first = 0
        if self._supervise == "last-turn":
            first = answers[-1]
        elif self._supervise == "completion":
            first = max(i for i, m in enumerate(messages) if m["role"] == "user")
        return [i >= first and messages[i].get("weight") != 0 for i in answers]

    def _turn(self, message: Message, prompt: str, whole: str) -> "_Turn":
        """Return an answer in the conversation that it ends, from the texts rendered without it and with it."""
        same = _common(prompt, whole)
        says = _must_say(message)
        # a thought before the answer may have an end of its own
        end = self._stop.search(whole, _after(whole, same, says))
        answer = whole[same : end.end()] if end else whole[same:].rstrip()
        turn = _Turn(prompt, answer, says, end is None)
        return turn if same == len(prompt) else self._continued(turn, prompt[same:].strip(), message, end)

    def _continued(self, turn: "_Turn", opening: str, message: Message, end: re.Match[str] | None) -> "_Turn":
        """Return a turn whose prompt opens the answer otherwise than the conversation does: with a thought."""
        content = message["content"] or ""
        if not opening:
            return turn
        if opening.startswith("</think>"):
            # the prompt has closed the thoughts: what follows them is the answer
            self.adapter.notes.add(
                "the chat template's prompt asks for no thoughts: they are left out (--rows.thinking)"
            )
            _, _, answer = turn.answer.rpartition("</think>")
            says = _must_say(message | {"content": content.rpartition("</think>")[2]})
            return replace(turn, answer=answer.lstrip("\n"), says=says)
        if opening != "<think>":
            raise Broken(f"the chat template begins each answer with {opening[:40]!r}, and this answer does not")
        if content.lstrip().startswith(opening):
            answer = content.lstrip().removeprefix(opening).lstrip("\n")
            return replace(turn, answer=answer + (end.group() if end else ""))
        thought = message.get("reasoning_content", "")
        if not thought:
            self.adapter.notes.add(
                "the chat template begins each answer with a thought: those without have an empty one"
            )
        return replace(turn, answer=f"{thought}\n</think>\n\n{turn.answer}")


def _common(a: str, b: str) -> int:
    """Return how many characters two texts begin with alike; a tag counts whole."""
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return same - 1 if same < len(a) and a[same - 1 : same] == "<" else same


def _after(text: str, at: int, parts: Sequence[str]) -> int:
    """Return where the last of the parts ends, looked for one after the other; `at` when one is missing."""
    end = at
    for part in parts:
        place = text.find(part, end)
        if place < 0:
            return at
        end = place + len(part)
    return end


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    # the longest first: one may begin like another
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


def _must_say(message: Message) -> tuple[str, ...]:
    """Return what the rendered answer must contain: its words without thoughts, and the names of its calls."""
    words = [part.strip() for part in _THOUGHT.split(message["content"] or "")]
    return (*filter(None, words), *(call["function"]["name"] for call in message.get("tool_calls", [])))
