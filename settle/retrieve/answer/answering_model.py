"""The language model that answers from a collection: the requested one, else the last one, else the only large one."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from settle.base.errors import SettleError, UsageError
from settle.infer.engine import Engine
from settle.library.facts import answering_models, read_facts
from settle.library.reference import ModelRef
from settle.library.resolve import resolve_gguf
from settle.retrieve.index.collection import Collection

NONE = "none"  # asks for quotes instead of a model
QUOTING = "quoting the documents"
SMALL = 1_000_000_000  # parameters: a smaller model often combines what it read wrongly, and is never chosen by itself
CONTEXT = 4096  # tokens: more than an answer needs, and small enough to load at once


class AnsweringModel:
    """The model that answers, loaded in the background. Raises UsageError for an unknown name."""

    def __init__(self, collection: Collection, requested: str | None) -> None:
        """Choose the model. requested: its name or `none`, which the collection remembers; or None."""
        self.requested = requested
        # no model where there is none, or several and none was chosen; and the reason, for the user
        self.ref, self.why = _choose(collection, requested)
        last = collection.catalogue.settings.get("model_said", str)
        self.is_news = bool(self.why) and last != self.why  # the user of the collection has not seen that reason yet
        if self.is_news:
            _remember(collection, "model_said", self.why)
        self._pool = ThreadPoolExecutor(1, "answering-model")
        self._engine = self._pool.submit(_start, self.ref)

    def engine(self) -> Engine | None:
        """Return the model once it is loaded. Raises SettleError when it cannot be."""
        return self._engine.result()

    @property
    def is_small(self) -> bool:
        """Return whether the model is so small that its answers are shown with the sentences that support them."""
        return self.ref is not None and read_facts(self.ref.weights).parameters < SMALL

    def close(self) -> None:
        """Stop the model. Calling it twice is harmless."""
        try:
            engine = self._engine.result()
        except SettleError:
            engine = None  # whoever asked for the engine has the error
        if engine is not None:
            engine.close()
        self._pool.shutdown()


def _choose(collection: Collection, requested: str | None) -> tuple[ModelRef | None, str]:
    settings = collection.catalogue.settings
    if requested == NONE:
        _remember(collection, "model", NONE)
        return None, ""
    if requested is not None:
        name = str(Path(requested).expanduser().absolute()) if requested.endswith(".gguf") else requested
        ref = resolve_gguf(name)
        _remember(collection, "model", name)
        return ref, ""
    gone = ""
    remembered = settings.get("model", str)
    if remembered == NONE:
        return None, ""
    if remembered is not None:
        try:
            return resolve_gguf(remembered), ""
        except UsageError:
            gone = f"{remembered}, which answered before, is gone; "
    names = answering_models()
    large = answering_models(SMALL)
    if len(large) == 1:
        return resolve_gguf(large[0]), gone and f"{gone}{large[0]} answers"
    if names and not large:
        is_are, it_them = ("is", "it") if len(names) == 1 else ("are", "one")
        small = f"{', '.join(names)} {is_are} too small to summarise reliably"
        return None, f"{gone}{QUOTING}: {small} (--model {names[0]} uses {it_them} anyway)"
    if names:
        return None, f"{gone}{QUOTING}: there are {', '.join(names)}; choose one with --model, and it is remembered"
    return None, f"{gone}{QUOTING}: there is no language model here (`settle pull smollm2` gets one)"


def _remember(collection: Collection, key: str, value: str) -> None:
    """Store a choice for the next questions, where the collection can be written to."""
    settings = collection.catalogue.settings
    if settings.get(key, str) != value and not collection.catalogue.database.is_read_only:
        settings.set(key, value)


def _start(model: ModelRef | None) -> Engine | None:
    if model is None:
        return None
    engine = Engine(model.weights, CONTEXT, adapter=model.adapter)
    engine.start()
    return engine
