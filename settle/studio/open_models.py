"""The models that the pages read and talk with: loaded when they are needed, two at most, each in a child process."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar, cast

from settle.base.errors import UsageError
from settle.evaluate.blind.session import stamp
from settle.library.reference import ModelRef
from settle.library.resolve import all_refs
from settle.studio.visit import in_thread

MOST = 2  # a model and the one beside it

M = TypeVar("M", bound=contextlib.AbstractContextManager[Any])
Key = tuple[object, str, str]  # how it was opened, its name, and the stamp of its files: they may have changed since


class OpenModels:
    """One text is worked on at a time, whoever asks."""

    def __init__(self) -> None:
        self._open: OrderedDict[Key, contextlib.AbstractContextManager[Any]] = OrderedDict()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def use(self, open: Callable[[ModelRef], M], *refs: ModelRef) -> Iterator[list[M]]:
        """Yield these models, opened; at most MOST stay open. Raises SettleError; a model that fails is closed."""
        with self._lock:
            keys: list[Key] = [(open, ref.id, stamp(ref)) for ref in refs]
            try:
                yield [self._model(partial(open, ref), key, keys) for ref, key in zip(refs, keys, strict=True)]
            except Exception:
                for key in keys:
                    self._close(key)
                raise

    def _model(self, open: Callable[[], M], key: Key, needed: list[Key]) -> M:
        if key not in self._open:
            idle = [other for other in self._open if other not in needed]
            for other in idle[: max(0, len(self._open) + 1 - MOST)]:
                self._close(other)
            model = open()
            model.__enter__()
            self._open[key] = model
        self._open.move_to_end(key)
        return cast(M, self._open[key])

    def _close(self, key: Key) -> None:
        model = self._open.pop(key, None)
        if model is not None:
            model.__exit__(None, None, None)


OPEN_MODELS = OpenModels()


async def model_names() -> list[str]:
    """Models and adapters of this machine. Raises UsageError where there is none."""
    names = [ref.id for ref in await in_thread(all_refs) if ref.kind in ("model", "adapter")]
    if not names:
        raise UsageError("there is no model on this machine yet", "`settle pull smollm2` gets one")
    return names
