"""Chat templates are programs that come with a model. They are compiled and rendered only in a child process.

There they run in jinja2's immutable sandbox, which keeps them from the machine (`render_child`), and within limits
of memory, time and output (`FencedChild`). Compiling counts as running: jinja2 computes constant expressions while it
compiles. Whoever only reads a file keeps the template as text.
"""

import collections
import datetime
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from settle.base.errors import DataError
from settle.base.line_child import ChildEnded, FencedChild, Limits

LONGEST = 1 << 18
LIMITS = Limits()
MOST_CHILDREN = 8  # that stay warm
_FIX = "use a template that `transformers` can read"


class TemplateFailure(DataError):
    """A chat template refused the messages."""


class TemplateGrammar(TemplateFailure):
    """A chat template does not parse."""


class TemplateRunaway(TemplateFailure):
    """The sandbox stopped a chat template: it would not end, fill the memory, or reach for what it must not."""


class TemplateObjection(TemplateFailure):
    """A chat template refused the messages by its own `raise_exception`."""


class ChatTemplate:
    """A template that compiles. bos_token, eos_token: what it may write; now: the time of templates that ask for it.

    Raises TemplateGrammar when the template does not parse, TemplateRunaway when compiling it does not end.
    """

    def __init__(
        self, source: str, bos_token: str = "", eos_token: str = "", now: datetime.datetime | None = None
    ) -> None:
        too_long = complaint(source)
        if too_long:
            raise TemplateGrammar(f"the chat template {too_long}", _FIX)
        self.source = source
        tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._request = {"source": source, "tokens": tokens, "now": now.isoformat() if now else None}
        self._ask({"messages": [], "tools": None, "arguments": {}}, [])

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **arguments: Any,
    ) -> str:
        """Render a conversation. Raises TemplateFailure with the template's own words, or the limit it ran into."""
        (text,) = self.render_cuts(messages, [(len(messages), add_generation_prompt)], tools, arguments)
        return text

    def render_cuts(
        self,
        messages: Sequence[Mapping[str, Any]],
        cuts: Sequence[tuple[int, bool]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        arguments: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[str]:
        """Render several beginnings of a conversation at the price of one.

        cuts: how many messages each beginning has, and whether the generation prompt follows them. Raises as `render`,
        for the first cut that fails.
        """
        given = {
            "messages": [_with_thoughts(m) for m in messages],
            "tools": list(tools) if tools else None,
            "arguments": dict(arguments),
        }
        texts: list[str] = []
        while len(texts) < len(cuts):
            texts += self._ask(given, cuts[len(texts) :])
        return texts

    def _ask(self, given: Mapping[str, Any], cuts: Sequence[tuple[int, bool]]) -> list[str]:
        try:
            with _RENDERERS.of(self.source) as renderer:
                answer: Any = renderer.ask({**self._request, **given, "cuts": list(cuts)})
        except ChildEnded as e:
            answer = [], ("stopped", str(e))
        except (TypeError, ValueError, RecursionError) as e:
            reason = f"the messages are no JSON: {str(e)[:200]}"
            raise TemplateFailure(reason, "give messages of plain values") from None
        texts, failure = answer
        if failure is None:
            return list(texts)
        kind, reason = failure
        if kind == "stopped":
            raise TemplateRunaway(f"the chat template is stopped: {reason}", "use another, with --rows.template")
        if kind == "grammar":
            raise TemplateGrammar(f"the chat template does not parse: {reason[:200]}", _FIX)
        failure_kind = TemplateObjection if kind == "objected" else TemplateFailure
        raise failure_kind(f"the chat template refuses: {reason}", "see what it asks of the messages")


def complaint(template: object) -> str | None:
    """Return what is wrong with a value in the place of a template, as far as it shows without compiling, or None."""
    if not isinstance(template, str):
        return f"is {template!r:.40}, and no text"
    if len(template) > LONGEST:
        return f"is {len(template)} characters long, {LONGEST} is the most"
    return None


def _with_thoughts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a message whose thoughts have the two names that templates read, as transformers and llama.cpp do."""
    names = ("reasoning_content", "thinking", "reasoning")
    thoughts = next((message[name] for name in names if message.get(name) is not None), None)
    return message if thoughts is None else {"thinking": thoughts, **message, "reasoning_content": thoughts}


def render(template: str, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, **tokens: Any) -> str:
    """Messages through a template, once; tokens: bos_token, eos_token. Raises TemplateFailure."""
    return ChatTemplate(template, **tokens).render(messages, add_generation_prompt=add_generation_prompt)


class _Renderers:
    """A warm child for each of the templates that were used last: a template that hangs delays no other one."""

    def __init__(self) -> None:
        self._children: collections.OrderedDict[str, FencedChild] = collections.OrderedDict()
        self._users: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    @contextmanager
    def of(self, source: str) -> Iterator[FencedChild]:
        """Yield the child of a template, which stays while it is in use."""
        with self._lock:
            child = self._children.get(source) or FencedChild("settle.base.chat_template.render_child", LIMITS)
            self._children[source] = child
            self._children.move_to_end(source)
            self._users[source] += 1
            idle = [other for other in self._children if not self._users[other]]
            surplus = [self._children.pop(other) for other in idle[: max(0, len(self._children) - MOST_CHILDREN)]]
        for other in surplus:
            other.close()
        try:
            yield child
        finally:
            with self._lock:
                self._users[source] -= 1
                if not self._users[source]:
                    del self._users[source]


_RENDERERS = _Renderers()


# --- a default system prompt inside of a template: the one that every row a model was tuned on had ---
# It is written before the template, as Jinja, so every program that renders the template answers in the same way, and
# every format that carries the template carries it. A conversation that has a system prompt of its own keeps that.

_HEAD = "{#- the model was tuned with this system prompt -#}{%- set default_system_prompt = "
# the default is one more message, as if it had been sent
_AS_MESSAGE = (
    " %}{%- if messages and messages[0]['role'] not in ['system', 'developer'] %}"
    "{%- set messages = [{'role': 'system', 'content': default_system_prompt}] + messages %}{%- endif -%}"
)
# where a template knows no system prompt, it is put before the first question, as in training
_BEFORE_QUESTION = (
    " %}{%- if messages and messages[0]['role'] == 'system' %}"
    "{%- set default_system_prompt = messages[0]['content'] %}{%- set messages = messages[1:] %}{%- endif %}"
    "{%- if messages and messages[0]['role'] == 'user' and messages[0]['content'] is string %}"
    "{%- set messages = [{'role': 'user', 'content': default_system_prompt + '\\n\\n' + messages[0]['content']}]"
    " + messages[1:] %}{%- endif -%}"
)
_WRITTEN = re.compile(
    re.escape(_HEAD) + r'"((?:[^"\\]|\\.)*)"(?:' + re.escape(_AS_MESSAGE) + "|" + re.escape(_BEFORE_QUESTION) + ")"
)
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_CHARACTERS = {written: char for char, written in _ESCAPES.items()}


def with_default_system(template: str, prompt: str, knows_system: bool) -> str:
    """Put a default system prompt into a template, in place of an earlier one.

    knows_system: it renders system prompts.
    """
    escaped = "".join(_ESCAPES.get(char, char) for char in prompt)
    rest = _AS_MESSAGE if knows_system else _BEFORE_QUESTION
    return f'{_HEAD}"{escaped}"{rest}{without_default_system(template)}'


def default_system(template: str | None) -> str | None:
    """Return the default that a template carries; None when it has none of ours."""
    written = _WRITTEN.match(template or "")
    return re.sub(r"\\.", lambda escape: _CHARACTERS[escape[0]], written[1]) if written else None


def without_default_system(template: str) -> str:
    """Return the template as it was without the default."""
    written = _WRITTEN.match(template)
    return template[written.end() :] if written else template
