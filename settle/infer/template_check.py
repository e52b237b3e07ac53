"""Templates of a model are proved to end before llama.cpp runs them: it runs them while it loads, and has no limits."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from settle.base.chat_template import ChatTemplate, TemplateFailure, TemplateGrammar, TemplateRunaway
from settle.base.errors import EngineError
from settle.library.facts import Metadata, templates

GREETING = ({"role": "user", "content": "hello"},)


@functools.lru_cache(64)
def compiled(source: str) -> ChatTemplate:
    """The template, compiled once. Raises TemplateFailure."""
    return ChatTemplate(source)


def require_end(
    source: str,
    messages: Sequence[Mapping[str, object]] = GREETING,
    tools: Sequence[Mapping[str, object]] = (),
    arguments: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Renders a template in its fenced child: one that would not end there must not run in llama.cpp either. What a
    template merely rejects llama.cpp may still know how to render. Raises TemplateRunaway, TemplateGrammar."""
    try:
        compiled(source).render(messages, tools, add_generation_prompt=True, **arguments)
    except (TemplateRunaway, TemplateGrammar):
        raise
    except TemplateFailure:
        pass


def require_sound_templates(name: str, sources: Iterable[str]) -> None:
    """Raises EngineError for a model whose template does not parse or does not end."""
    for source in sources:
        try:
            require_end(source)
        except TemplateFailure as e:
            raise EngineError(f"llama.cpp may not load {name}: {e.what}", "use another file of this model") from None


def require_sound_model(name: str, metadata: Metadata) -> None:
    """As `require_sound_templates`, for all templates of a GGUF file."""
    require_sound_templates(name, templates(metadata))
