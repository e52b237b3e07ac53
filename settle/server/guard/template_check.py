"""Chat templates are programs: a request's rendering is proved to end before llama.cpp does it."""

import asyncio
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

from settle.base.chat_template import TemplateGrammar, TemplateRunaway
from settle.infer.template_check import GREETING, require_end
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


async def check_template(
    source: str,
    messages: Sequence[Mapping[str, object]] = GREETING,
    tools: Sequence[Mapping[str, object]] = (),
    arguments: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Renders the template in its fenced child, see `require_end`. Raises ApiError."""
    loop = asyncio.get_running_loop()
    try:
        async with _TURNS.of(source):
            await loop.run_in_executor(_THREADS, require_end, source, messages, tools, arguments)
    except TemplateRunaway as e:
        raise ApiError(400, e.what, "template_runaway", PROMPT) from None
    except TemplateGrammar as e:
        raise ApiError(503, e.what, "model_broken", "model") from None
