"""A model under the name that clients ask for."""

import asyncio
import subprocess
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from settle.base.chat_template import TemplateFailure, TemplateRunaway
from settle.base.errors import FormatError, malformed_is_format_error
from settle.base.python_command import module_command
from settle.infer.child_process import Body
from settle.infer.template_check import require_decides, require_end, require_renders
from settle.library.facts import Facts, adapter_template, read_facts
from settle.library.store import stamp_of
from settle.wire.errors import PROMPT, ApiError

CONVERT_SECONDS = 1800


@dataclass(frozen=True)
class ModelEntry:
    """A model that can be asked for."""

    id: str  # the name that clients ask for; adapters are called `base:adapter`
    path: Path  # of the GGUF file
    adapter: Path | None = None
    base: str = ""
    aliases: tuple[str, ...] = ()  # other names for it
    origin: str = ""
    collection: str = ""  # of documents that it answers from, "" for the model itself: see `document_models`
    is_converted: bool = False  # that file is made from a model in Hugging Face's layout when it is first used

    @property
    def created(self) -> int:
        """Seconds since the epoch."""
        file = self.adapter or self.path
        return int(file.stat().st_mtime) if file.exists() else 0

    def require_no_documents(self, why: str) -> None:
        """Refuse a collection of documents, which supports chats only. Raises ApiError."""
        if self.collection:
            message = f"{self.id} answers questions in chats, from documents: {why}"
            raise ApiError(400, message, "wrong_model", "model")


def file_stamp(entry: ModelEntry, path: Path) -> str:
    """Return the stamp of a file of the entry. Raises ApiError when it is gone."""
    try:
        return stamp_of(path)
    except OSError:
        raise ApiError(503, f"the file of {entry.id} is gone: {path.name}", "model_broken", "model") from None


def make_file(entry: ModelEntry) -> None:
    """Convert a model that has no GGUF file yet, in a process of its own because it loads torch. Raises ApiError."""
    if entry.path.exists():
        return
    if not entry.is_converted:
        raise ApiError(503, f"the file of {entry.id} is gone: {entry.path.name}", "model_broken", "model")
    command = module_command("settle.library.convert", entry.id.removeprefix("store:"))
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=CONVERT_SECONDS)
    if done.returncode or not entry.path.exists():
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise ApiError(503, f"{entry.id} cannot be converted to GGUF: {reason[0][:300]}", "model_broken", "model")


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


async def check_model_templates(known: Facts, own: str | None) -> None:
    """Check the templates of a model before llama.cpp loads it, which runs them. Raises ApiError."""
    for source in dict.fromkeys(filter(None, (own, *known.templates))):
        await _in_turn(source, require_renders, source)
    if known.decision:
        await _in_turn(known.decision.template, require_decides, known.decision.template)


async def check_template(
    source: str,
    messages: Sequence[Body],
    tools: Sequence[Body],
    arguments: Body,
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
