"""Chat templates are programs: a model's template runs in the sandbox before llama.cpp runs it."""

import functools
import threading
from collections.abc import Mapping, Sequence

from settle.base.chat_template import ChatTemplate, TemplateFailure, TemplateRunaway
from settle.server.errors import PROMPT, ApiError


@functools.lru_cache(64)
def _template(source: str) -> tuple[ChatTemplate, threading.Lock] | None:
    try:
        return ChatTemplate(source), threading.Lock()
    except TemplateFailure:
        return None


def check_template(
    source: str,
    messages: Sequence[Mapping[str, object]],
    tools: Sequence[Mapping[str, object]],
    arguments: Mapping[str, object] | None = None,
) -> None:
    """Renders the template in the sandbox: one that would not end there must not run in llama.cpp either. What the
    template merely rejects llama.cpp may still know how to render. Raises ApiError."""
    cached = _template(source)
    if cached is None:
        return
    template, lock = cached
    try:
        with lock:  # its limits count for one rendering at a time
            template.render(messages, tools, add_generation_prompt=True, **(arguments or {}))
    except TemplateRunaway as e:
        raise ApiError(400, e.what, "template_runaway", PROMPT) from None
    except TemplateFailure:
        pass
