"""Chat templates are programs: what a model's file brings runs in the sandbox before llama.cpp runs it."""

import functools
import threading
from collections.abc import Mapping
from typing import Any

from settle.base.chat_template import ChatTemplate, TemplateFailure, TemplateRunaway
from settle.server.errors import Refusal


@functools.lru_cache(64)
def _template(source: str) -> tuple[ChatTemplate, threading.Lock] | None:
    try:
        return ChatTemplate(source), threading.Lock()
    except TemplateFailure:
        return None


def guard_template(
    source: str, messages: list[dict], tools: list[dict], arguments: Mapping[str, Any] | None = None
) -> None:
    """Run the template in the sandbox first: one that would not end there must not run in llama.cpp either. What it
    merely refuses llama.cpp may still know how to put. Raises Refusal."""
    found = _template(source)
    if found is None:
        return
    template, lock = found
    try:
        with lock:  # its limits are counted for one rendering at a time
            template.render(messages, tools, add_generation_prompt=True, **(arguments or {}))
    except TemplateRunaway as e:
        raise Refusal(400, e.what, "template_runaway", "messages") from None
    except TemplateFailure:
        pass
