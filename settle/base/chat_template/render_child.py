"""The process that compiles and renders chat templates: `settle.base.chat_template` asks it, one template a process.

A request is a `RenderRequest`. The answer: [texts, null or [kind of failure, reason]]; the texts are those of the first
cuts, as many as one answer holds.

Templates run in jinja2's immutable sandbox, with limits of its own: a loop's iterations and the calls are counted, and
every text that is made is measured before it can be doubled again. What these limits miss, those of the process hold;
but a template that runs into these must not run in llama.cpp, which has none.
"""

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypedDict

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from settle.base.line_child import answer_requests

# --- the sandbox ---

MOST_STEPS = 300_000  # iterations and calls of one rendering
MOST_CHARACTERS = 1 << 24
# whatever a program can raise that is not our own mistake
_FAILURES = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_WIDE = re.compile(r"%[-+ #0.*\d]*\d{6}|\{[^{}]*:[^{}]*\d{6}")  # a format that pads to a million characters
_PADDING = ("batch", "center", "indent", "slice", "truncate", "wordwrap")


class Refused(Exception):
    """A template does not parse, or an error ended it."""


class Objected(Refused):
    """A template refused what it was given by its own `raise_exception`; in its own words."""


class Limited(SecurityError):
    """A template ran into a limit."""


class Template:
    """A compiled template. Raises Refused when it does not parse, SecurityError when compiling it is stopped."""

    def __init__(self, source: str) -> None:
        self._environment = _Environment()
        try:
            self._template = self._environment.from_string(source)
        except SecurityError:
            raise
        except (*_FAILURES, SyntaxError) as e:
            raise Refused(str(e) or type(e).__name__) from None

    def render(self, values: Mapping[str, Any], now: datetime.datetime | None) -> str:
        """Render the template with these names.

        now: the time for templates that ask. Raises Refused, and SecurityError (Limited among them) for a template that
        is stopped.
        """
        self._environment.start(now)
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(**values):
                parts.append(part)
                size += len(part)
                if size > MOST_CHARACTERS:
                    raise Limited(f"it writes more than {MOST_CHARACTERS:,} characters")
        except SecurityError:
            raise
        except _Objection as e:
            raise Objected(str(e)) from None
        except _FAILURES as e:
            raise Refused(str(e) or type(e).__name__) from None
        return "".join(parts)


class _Objection(TemplateError):
    """What `raise_exception` raises."""


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}` marks what is trained on; rendered, it is just its content."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Counted:
    """An iterable whose every step is counted; as long as what it goes through."""

    def __init__(self, values: Any, count: Callable[[], None]) -> None:
        self._values, self._count = values, count

    def __iter__(self) -> Iterator[Any]:
        for value in self._values:
            self._count()
            yield value

    def __len__(self) -> int:
        return len(self._values)


class _Limiting(NodeTransformer):
    """Sends what loops go through and what is put together past the environment's `_counted` and `_sized`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _through("_counted", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _through("_sized", node)

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:
        self.generic_visit(node)
        node.filter = _through("_sized", node.filter)
        return node


def _through(name: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None)


class _Environment(ImmutableSandboxedEnvironment):
    """Set the environment up as transformers does (chat_template_utils), so that a template means the same; limited."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
        self.filters["tojson"] = _tojson
        self.filters = {name: self._measured(name, f) for name, f in self.filters.items()}
        self.filters |= {"_counted": lambda values: _Counted(values, self._step), "_sized": _sized}
        self.globals = {
            "dict": _Dict(),
            "namespace": _PublicNamespace,
            "raise_exception": _raise,
            "range": self.globals["range"],
            "strftime_now": lambda form: (self._now or datetime.datetime.now()).strftime(form),
        }
        self.start(None)

    def start(self, now: datetime.datetime | None) -> None:
        """Begin a new rendering, with a full budget. now: its time, or None for the clock's."""
        self._steps, self._now = 0, now

    def _step(self) -> None:
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise Limited(f"it takes more than {MOST_STEPS:,} steps")

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed: nodes.Template = _Limiting().visit(super()._parse(source, name, filename))
        return parsed

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                if (
                    isinstance(text, str | list | tuple)
                    and isinstance(times, int)
                    and len(text) * times > MOST_CHARACTERS
                ):
                    raise Limited(f"it repeats a text {times:,} times")
        if operator == "**" and abs(right) * len(str(left)) > 10_000:
            raise Limited("it computes a number too large to be written")
        return _sized(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # the names are jinja's: keyword arguments of the template must not collide with them
        __self._step()
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        if isinstance(owner, str):
            if __obj.__name__ in ("format", "format_map"):
                _check_format(owner)
            _check_numbers(args)
        return _sized(super().call(__context, __obj, *args, **kwargs))

    def _measured(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            self._step()
            if name in _PADDING:
                _check_numbers((*args, *kwargs.values()))
            if name == "format":
                _check_format(str(args[0]))
            return _sized(function(*args, **kwargs))

        return measured


def _sized(value: Any) -> Any:
    if isinstance(value, str | list | tuple) and len(value) > MOST_CHARACTERS:
        raise Limited(f"it makes a text of more than {MOST_CHARACTERS:,} characters")
    return value


def _check_numbers(values: Sequence[Any]) -> None:
    if any(isinstance(v, int) and abs(v) > MOST_CHARACTERS for v in values):
        raise Limited(f"it pads a text to more than {MOST_CHARACTERS:,} characters")


def _check_format(text: str) -> None:
    if _WIDE.search(text):
        raise Limited(f"it pads a text to more than {MOST_CHARACTERS:,} characters")


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # jinja's own escapes HTML
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise _Objection(message)


class _Dict:
    """`dict` as a function, without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _PublicNamespace(Namespace):
    """A namespace that takes no names with an underscore in front."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # no name for self, so that a template may use it
        Namespace.__init__(*args)
        for name, value in kwargs.items():
            args[0][name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"it stores the private name {name!r}")
        super().__setitem__(name, value)


# --- requests ---

MOST_TEXTS, MOST_ANSWERED = 16, 1 << 22  # characters, of one answer; the last text may exceed them


class RenderRequest(TypedDict):
    """Renderings of one conversation. now: as ISO 8601, or None for the time of the rendering."""

    source: str
    tokens: dict[str, str]
    now: str | None
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    arguments: dict[str, Any]
    cuts: list[tuple[int, bool]]  # each asks for the first so many messages, and whether the generation prompt follows


class Renderer:
    """Answers requests; the template of the last one stays compiled."""

    def __init__(self) -> None:
        self._source: str | None = None

    def answer(self, request: Any) -> tuple[list[str], tuple[str, str] | None]:
        asked: RenderRequest = request
        texts: list[str] = []
        try:
            if self._source != asked["source"]:
                self._source = None
                self._template = Template(asked["source"])
                self._source = asked["source"]
            given = {"tools": asked["tools"], "documents": None} | asked["tokens"]
            now = datetime.datetime.fromisoformat(asked["now"]) if asked["now"] else None
            for count, wants_prompt in asked["cuts"]:
                # a template changes nothing that it is given: the sandbox is immutable
                values = {"messages": asked["messages"][:count]} | given | {"add_generation_prompt": wants_prompt}
                texts.append(self._template.render(values | asked["arguments"], now))
                if len(texts) == MOST_TEXTS or sum(map(len, texts)) > MOST_ANSWERED:
                    break
        except SecurityError as e:
            return texts, ("stopped", str(e)[:300])
        except Objected as e:
            return texts, ("objected", str(e)[:300])
        except Refused as e:
            return texts, ("refused" if self._source else "grammar", str(e)[:300])
        return texts, None


if __name__ == "__main__":
    answer_requests(Renderer().answer)
