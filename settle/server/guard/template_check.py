"""Chat templates are programs: they are rendered in a sandbox before llama.cpp does it."""

import asyncio
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from settle.base.chat_template import TemplateFailure, TemplateRunaway
from settle.infer.template_check import require_decides, require_end, require_renders
from settle.server.errors import PROMPT, ApiError

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
