"""Examples → text with the places that are supervised: what the model has to write after the prompt.

No markers in the template are needed. The prompt of an answer is the conversation before it, rendered with the
generation prompt, as any server renders it; the answer is what the template puts after that, up to and with the token
that ends the turn. Where a template changes earlier turns once later ones follow (it drops thoughts, or moves the
tools), an answer that no longer reads as it was written becomes a row of its own.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from settle.base.chat_template import ChatTemplate, TemplateFailure, TemplateRunaway
from settle.data.layouts import Broken, Example, Message
from settle.data.rows.templates import TemplateAdapter

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
        arguments: Mapping[str, object],
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
