"""Examples → text, with the places that are supervised: what the model has to write after the prompt it will be given.

No markers in the template are needed. The prompt of an answer is the conversation before it, rendered with the
generation prompt, as any server renders it; the answer is what the template puts after that, up to and with the token
that ends the turn. Where a template changes earlier turns once later ones follow (it drops thoughts, or moves the
tools), an answer that no longer reads as it was written becomes a row of its own.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from settle.base.chat_template import ChatTemplate, TemplateFailure, TemplateRunaway
from settle.data.layouts import Broken, Example, Message
from settle.data.rows.dialect import Dialect

_THOUGHT = re.compile(r"</?think(?:ing)?>")


@dataclass(frozen=True)
class Answer:
    """One answer: its characters in the text, its end-of-turn marker with it, and what must be found there."""

    start: int
    end: int
    says: tuple[str, ...]  # in this order
    supervised: bool


@dataclass(frozen=True)
class Rendered:
    """A row as text. everything: all of it is supervised; otherwise its answers are, each as it says.

    unended: the template ends the last answer with no token that stops, and the tokenizer's own has to be added.
    """

    text: str
    answers: tuple[Answer, ...]
    everything: bool = False
    unended: bool = False


class Renderer:
    """Renders examples. template: None for prompt and completion as they are.

    stops: texts of the tokens that end a turn; controls: of all tokens that no turn may contain.
    """

    def __init__(
        self,
        template: ChatTemplate | None,
        stops: Sequence[str],
        controls: Sequence[str],
        supervise: str,
        arguments: Mapping[str, Any],
    ) -> None:
        self._template = template
        self._supervise = supervise
        self._arguments = dict(arguments)
        self._stop, self._control = _any_of(stops), _any_of(controls)
        self.source = template.source if template else None
        self.dialect = Dialect(template, self._arguments)

    def rows(self, example: Example) -> list[Rendered]:
        """A chat's or a text's rows: one, or more where the template changes earlier turns. Raises Broken."""
        if example.kind == "text":
            return [Rendered(example.text, (), everything=True, unended=True)]
        if any(self._control.search(message["content"]) for message in example.messages):
            raise Broken("a special token of the model within a turn")
        if self._template is None:
            return [self._plain(example)]
        try:
            return self._chat(example)
        except TemplateRunaway:
            raise
        except TemplateFailure as e:
            raise Broken(e.what) from None

    def pair(self, example: Example) -> tuple[Rendered, Rendered]:
        """A preference's two rows, chosen and rejected. Raises Broken."""
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
        answer = Answer(len(prompt), len(prompt) + len(completion), (completion.strip(),), True)
        return Rendered(prompt + completion, (answer,), self._supervise == "all", unended=True)

    def _chat(self, example: Example) -> list[Rendered]:
        messages, tools = self.dialect.spoken(example.messages, example.tools)
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        wanted = dict(zip(answers, self._wanted(example.messages), strict=True))
        if not any(wanted.values()):
            raise Broken("no answer that is supervised")
        # from the last to the first: an answer is found in a row that was rendered for a later one, or has its own
        rows: list[tuple[str, list[Answer], bool]] = []
        for number in sorted(wanted, reverse=True):
            prompt, said, unended = self._turn(messages, number, tools)
            answer = Answer(len(prompt), len(prompt) + len(said), _must_say(messages[number]), wanted[number])
            home = next((row for row in rows if row[0].startswith(prompt + said) and not unended), None)
            if home is not None:
                home[1].append(answer)
            elif wanted[number]:
                rows.append((prompt + said, [answer], unended))
        everything = self._supervise == "all"
        return [Rendered(text, tuple(answers[::-1]), everything, unended) for text, answers, unended in rows[::-1]]

    def _wanted(self, messages: Sequence[Message]) -> list[bool]:
        """Whether each answer of the conversation is supervised."""
        answers = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        first = 0
        if self._supervise == "last-turn":
            first = answers[-1]
        elif self._supervise == "completion":
            first = max(i for i, m in enumerate(messages) if m["role"] == "user")
        return [i >= first and messages[i].get("weight") != 0 for i in answers]

    def _turn(self, messages: Sequence[Message], number: int, tools: list[dict[str, Any]]) -> tuple[str, str, bool]:
        """The prompt of an answer, the answer with its end, and whether that end is still missing."""
        prompt = self._render(messages[:number], tools, True)
        whole = self._render(messages[: number + 1], tools, False)
        if not whole.startswith(prompt):
            return self._continued(prompt, whole, messages[number])
        said = whole[len(prompt) :]
        end = self._stop.search(said)
        if end is None:
            return prompt, said.rstrip(), True
        return prompt, said[: end.end()], False

    def _continued(self, prompt: str, whole: str, message: Message) -> tuple[str, str, bool]:
        """For a template that opens the answer (with `<think>`) in the prompt and not in the conversation."""
        same = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))
        opening = prompt[same:].strip()
        content = (message["content"] or "").lstrip()
        if not opening or not content.startswith(opening) or message.get("tool_calls"):
            raise Broken(f"the chat template begins each answer with {opening[:40]!r}, and this answer does not")
        end = self._stop.search(whole, same)
        said = content[len(opening) :].lstrip("\n")
        return (prompt, said, True) if end is None else (prompt, said + end.group(), False)

    def _render(self, messages: Sequence[Message], tools: list[dict[str, Any]], prompt: bool) -> str:
        assert self._template is not None
        return self._template.render(messages, tools or None, prompt, **self._arguments)


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    # the longest first: one may begin like another
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


def _must_say(message: Message) -> tuple[str, ...]:
    """What has to be found in the rendered answer: its words, the thoughts apart, and the names of its calls."""
    words = [part.strip() for part in _THOUGHT.split(message["content"] or "")]
    return (*filter(None, words), *(call["function"]["name"] for call in message.get("tool_calls", [])))
