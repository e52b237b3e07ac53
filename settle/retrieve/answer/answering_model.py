"""Which language model answers from a collection: the one asked for, else the one it had last, else the only one."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from settle.base.errors import SettleError, UsageError
from settle.infer.engine import Engine
from settle.library.facts import chat_models
from settle.library.reference import ModelRef
from settle.library.resolve import resolve_gguf
from settle.retrieve.index.collection import Collection

NONE = "none"  # asked for where the passages are to be quoted
CONTEXT = 4096  # tokens: more than an answer needs, and a short one is there at once


class Writer:
    """The model that answers, loaded while other things are done.

    asked: a model's name, which is remembered for the collection; `none`; or None. model: None where there is none, or
    none that could be told from the others; why: in words. Raises UsageError for a name that nothing has.
    """

    def __init__(self, collection: Collection, asked: str | None) -> None:
        self.asked = asked
        self.model, self.why = _chosen(collection, asked)
        self._pool = ThreadPoolExecutor(1, "writer")
        self._engine = self._pool.submit(_started, self.model)

    def engine(self) -> Engine | None:
        """The model once it is loaded. Raises SettleError when it cannot be."""
        return self._engine.result()

    def close(self) -> None:
        """Ends the model. Calling it twice is harmless."""
        try:
            engine = self._engine.result()
        except SettleError:
            engine = None  # told to whoever asked for it
        if engine is not None:
            engine.close()
        self._pool.shutdown()


def _chosen(collection: Collection, asked: str | None) -> tuple[ModelRef | None, str]:
    if asked == NONE:
        return None, ""
    if asked is not None:
        name = str(Path(asked).expanduser().absolute()) if asked.endswith(".gguf") else asked
        found = resolve_gguf(name)
        if collection.catalogue.settings.get("model", str) != name:
            collection.catalogue.settings.set("model", name)
        return found, ""
    gone = ""
    remembered = collection.catalogue.settings.get("model", str)
    if remembered is not None:
        try:
            return resolve_gguf(remembered), ""
        except UsageError:
            gone = f"{remembered}, which answered before, is gone; "
    names = chat_models()
    if len(names) == 1:
        return resolve_gguf(names[0]), gone and f"{gone}{names[0]} answers"
    if names:
        return None, f"{gone}there are {', '.join(names)}: --model chooses one, and is remembered"
    return None, f"{gone}there is no language model here; `settle pull smollm2` brings one"


def _started(model: ModelRef | None) -> Engine | None:
    if model is None:
        return None
    engine = Engine(model.weights, CONTEXT, adapter=model.adapter)
    engine.start()
    return engine
