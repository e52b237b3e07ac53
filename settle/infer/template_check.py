"""Templates of a model are rendered in their fenced child before llama.cpp runs them: it runs them while it loads."""

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from settle.base.chat_template import (
    ChatTemplate,
    TemplateFailure,
    TemplateGrammar,
    TemplateObjection,
    TemplateRunaway,
)
from settle.base.errors import EngineError
from settle.formats import Metadata
from settle.formats.gguf.decision import TEMPLATE_KEY
from settle.infer.child_process import Body
from settle.library.facts import templates

GREETING = ({"role": "user", "content": "hello"},)
_PARAMETERS = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
DECISION: Mapping[str, Any] = {
    "state": "hello", "type": "choice", "instructions": "Which one?",
    "options": [{"label": "A", "key": "a", "description": None}, {"label": "B", "key": "b", "description": "two"}],
}  # fmt: skip
TOOLS = ({"type": "function", "function": {"name": "look", "description": "Look.", "parameters": _PARAMETERS}},)


@functools.lru_cache(64)
def compiled(source: str) -> ChatTemplate:
    """Compile the template once. Raises TemplateFailure."""
    return ChatTemplate(source)


def require_end(
    source: str,
    messages: Sequence[Body],
    tools: Sequence[Body] = (),
    arguments: Body = MappingProxyType({}),
) -> None:
    """Render one request: a template that would not end there must not run in llama.cpp either.

    What else fails here llama.cpp may still render: it fits messages to a template. Raises TemplateRunaway,
    TemplateGrammar.
    """
    try:
        compiled(source).render(messages, tools, add_generation_prompt=True, **arguments)
    except (TemplateRunaway, TemplateGrammar):
        raise
    except TemplateFailure:
        pass


@functools.lru_cache(64)
def require_renders(source: str) -> None:
    """Render a greeting, since what fails here and runs in llama.cpp is not known to end there.

    Only a template's own `raise_exception` may refuse it, or one for tools where there are none. Raises
    TemplateFailure.
    """
    template = compiled(source)
    try:
        template.render(GREETING, add_generation_prompt=True)
    except TemplateObjection:
        pass
    except TemplateRunaway:
        raise
    except TemplateFailure as failure:
        try:
            template.render(GREETING, TOOLS, add_generation_prompt=True)
        except TemplateRunaway:
            raise
        except TemplateFailure:
            raise failure from None


@functools.lru_cache(64)
def require_decides(source: str) -> None:
    """Render the template of a decision model with the variables that llama.cpp gives it. Raises TemplateFailure."""
    compiled(source).render((), **DECISION)


def require_sound_model(name: str, metadata: Metadata) -> None:
    """Check all templates of a GGUF file, that of decisions by their own variables.

    Raises EngineError for one that does not parse, does not end or does not render."""
    decides = metadata.get(TEMPLATE_KEY)
    try:
        for source in templates(metadata):
            require_renders(source)
        if isinstance(decides, str):
            require_decides(decides)
    except TemplateFailure as e:
        raise EngineError(f"llama.cpp may not load {name}: {e.what}", "use another file of this model") from None
