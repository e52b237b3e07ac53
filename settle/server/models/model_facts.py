"""What the library reads from the GGUF file of an entry, with the API's errors, and what the model can do."""

import asyncio
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from settle.base.chat_template import TemplateFailure, TemplateRunaway
from settle.base.errors import FormatError, malformed_is_format_error
from settle.infer.template_check import require_decides, require_end, require_renders
from settle.library.facts import Facts, adapter_template, read_facts
from settle.server.models.model_entry import ModelEntry
from settle.wire.errors import PROMPT, ApiError

REASONING = ("reasoning_content", "enable_thinking", "reasoning_effort", "<think>")  # in templates of reasoning models


def facts(path: Path) -> Facts:
    """Return what a file says of its model. Raises ApiError when it is not a valid GGUF."""
    try:
        return read_facts(path)
    except FormatError as e:
        raise ApiError(503, e.what, "model_broken", "model") from None


def template_of(entry: ModelEntry) -> str | None:
    """Return the chat template of an entry: its adapter's own where that has one. Raises ApiError."""
    try:
        with malformed_is_format_error(entry.id):
            own = adapter_template(entry.adapter) if entry.adapter else None
    except FormatError as e:
        raise ApiError(503, e.what, "adapter_broken", "model") from None
    return own or facts(entry.path).template


def completes_only(entry: ModelEntry) -> bool:
    """Return whether it was trained on plain text, and no adapter has taught it to take turns. Raises ApiError."""
    return facts(entry.path).completes and not (entry.adapter and adapter_template(entry.adapter))


def capabilities(entry: ModelEntry) -> list[str]:
    """By Ollama's names. Raises ApiError."""
    known = facts(entry.path)
    if known.reranks:
        return ["rerank"]
    if known.embeds:
        return ["embedding"]
    if entry.collection:
        return ["completion"]
    template = template_of(entry)
    thinks = ["thinking"] if template and any(word in template for word in REASONING) else []
    more = [name for name, has in (("tools", template), ("insert", known.fim), ("decision", known.decision)) if has]
    return ["completion", *more, *thinks]


# threads of their own: templates that hang must not hold those that the rest of the server needs
_THREADS = ThreadPoolExecutor(8, "templates")


class _Turns(weakref.WeakValueDictionary[tuple[int, str], asyncio.Lock]):
    """One rendering of a template at a time, so that one that hangs holds one thread."""

    def of(self, source: str) -> asyncio.Lock:
        key = id(asyncio.get_running_loop()), source  # a lock belongs to its loop
        lock = self.get(key)
        if lock is None:
            lock = self[key] = asyncio.Lock()
        return lock


_TURNS = _Turns()


async def check_model_template(source: str) -> None:
    """Check a template before llama.cpp loads it, see `require_renders`. Raises ApiError."""
    await _in_turn(source, require_renders, source)


async def check_decision_template(source: str) -> None:
    """Check the template of a decision model before llama.cpp loads it, see `require_decides`. Raises ApiError."""
    await _in_turn(source, require_decides, source)


async def check_template(
    source: str,
    messages: Sequence[Mapping[str, object]],
    tools: Sequence[Mapping[str, object]],
    arguments: Mapping[str, object],
) -> None:
    """Render one request in the template's fenced child, see `require_end`. Raises ApiError."""
    await _in_turn(source, require_end, source, messages, tools, arguments)


async def _in_turn(source: str, check: Callable[..., None], *arguments: object) -> None:
    loop = asyncio.get_running_loop()
    try:
        async with _TURNS.of(source):
            await loop.run_in_executor(_THREADS, check, *arguments)
    except TemplateRunaway as e:
        raise ApiError(400, e.what, "template_runaway", PROMPT) from None
    except TemplateFailure as e:
        raise ApiError(503, e.what, "model_broken", "model") from None
