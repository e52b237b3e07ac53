"""What the library reads from the GGUF file of an entry, with the API's errors, and what the model can do."""

from pathlib import Path

from settle.base.errors import FormatError, malformed_is_format_error
from settle.library.facts import Facts, adapter_template, read_facts
from settle.server.errors import ApiError
from settle.server.models.model_entry import ModelEntry

REASONING = ("reasoning_content", "enable_thinking", "reasoning_effort", "<think>")  # in templates of reasoning models


def facts(path: Path) -> Facts:
    """Raises ApiError when the file is not a valid GGUF."""
    try:
        return read_facts(path)
    except FormatError as e:
        raise ApiError(503, e.what, "model_broken", "model") from None


def template_of(entry: ModelEntry) -> str | None:
    """The chat template of an entry: its adapter's own where that has one. Raises ApiError."""
    try:
        with malformed_is_format_error(entry.id):
            own = adapter_template(entry.adapter) if entry.adapter else None
    except FormatError as e:
        raise ApiError(503, e.what, "adapter_broken", "model") from None
    return own or facts(entry.path).template


def completes_only(entry: ModelEntry) -> bool:
    """Whether it was trained on plain text, and no adapter has taught it to take turns. Raises ApiError."""
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
