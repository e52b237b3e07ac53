"""The models that the pages read and talk with: loaded when they are needed, two at most, each in a child process."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

from settle.base.errors import SettleError, UsageError
from settle.evaluate.blind.session import stamp
from settle.infer.token_reader import TokenReader
from settle.library.facts import adapter_template, read_facts
from settle.library.reference import ModelRef
from settle.library.resolve import all_refs, resolve
from settle.studio.visit import in_thread

MOST = 2  # a model and the one beside it

M = TypeVar("M", bound=contextlib.AbstractContextManager[Any])
Opener = Callable[[str], M]
Key = tuple[object, str, str]  # how it was opened, its name, and the stamp of its files: they may have changed since


class OpenModels:
    """One text is worked on at a time, whoever asks."""

    def __init__(self) -> None:
        self._open: OrderedDict[Key, contextlib.AbstractContextManager[Any]] = OrderedDict()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def use(self, open: Opener[M], *names: str) -> Iterator[list[M]]:
        """Yield these models, opened; at most MOST stay open.

        open: makes one from its name. Raises SettleError; a model that fails is closed.
        """
        with self._lock:
            keys: list[Key] = [(open, name, stamp(resolve(name))) for name in names]
            try:
                yield [self._model(open, key, keys) for key in keys]
            except Exception:
                for key in keys:
                    self._close(key)
                raise

    def _model(self, open: Opener[M], key: Key, needed: list[Key]) -> M:
        if key not in self._open:
            idle = [other for other in self._open if other not in needed]
            for other in idle[: max(0, len(self._open) + 1 - MOST)]:
                self._close(other)
            model = open(key[1])
            model.__enter__()
            self._open[key] = model
        self._open.move_to_end(key)
        return cast(M, self._open[key])

    def _close(self, key: Key) -> None:
        model = self._open.pop(key, None)
        if model is not None:
            model.__exit__(None, None, None)


OPEN_MODELS = OpenModels()


def token_reader(name: str) -> TokenReader:
    return TokenReader(resolve(name))


async def model_names() -> list[str]:
    """Models and adapters of this machine. Raises UsageError where there is none."""
    names = [ref.id for ref in await in_thread(all_refs) if ref.kind in ("model", "adapter")]
    if not names:
        raise UsageError("there is no model on this machine yet", "`settle pull smollm2` gets one")
    return names


def chat_models() -> tuple[list[str], list[str]]:
    """Return the models that take turns, and those that only complete a text; embedders and deciders are neither."""
    names: dict[bool, list[str]] = {True: [], False: []}
    for ref in all_refs():
        if ref.kind in ("model", "adapter") and (is_chat := _takes_turns(ref)) is not None:
            names[is_chat].append(ref.id)
    return names[True], names[False]


def recommended(name: str) -> Mapping[str, float]:
    """Return how answers of a model are drawn best, under llama.cpp's names; nothing where that is not known."""
    try:
        return read_facts(resolve(name).weights).sampling.settings
    except (SettleError, OSError):
        return {}


def _takes_turns(ref: ModelRef) -> bool | None:
    """Whether a model chats; None where it writes nothing, or cannot be read."""
    if ref.source.kind == "safetensors":
        return True  # what it is shows once it is converted
    try:
        facts = read_facts(ref.weights)
        own = adapter_template(ref.adapter) if ref.adapter else None
    except (SettleError, OSError):
        return None
    if facts.use != "generate" or facts.decision:
        return None
    return bool(own) or (bool(facts.template) and not facts.completes)
