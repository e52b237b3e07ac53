"""all-MiniLM-L6-v2, a sentence embedder of 22 million parameters: small enough for a laptop, and works offline."""

from settle.base.errors import ResourceError, SettleError
from settle.base.event_log import Events
from settle.base.events import Say
from settle.retrieve.index.embedders import Embedder, Vectorizer
from settle.retrieve.index.embedders.gguf import Gguf

_NAME = "minilm"  # in the store and in the catalogue of `settle pull`


class Minilm(Embedder):
    """English; pulled once, as `settle pull minilm` does. Passages of up to 254 tokens, vectors of 384 numbers."""

    def prepare(self, events: Events) -> None:
        from settle.library.pull.pull import find_offer, known_already, pull

        if known_already(_NAME):
            return
        events.emit(Say(text="getting the embedder, all-MiniLM-L6-v2 (84 MB), once …"))
        try:
            pull(find_offer(_NAME), None, events)
        except SettleError as e:
            fix = "connect once for `settle pull minilm`, or choose a model that is on this machine: --embedder gguf"
            raise ResourceError(f"the embedder cannot be pulled: {e.what}", fix) from None

    def open(self) -> Vectorizer:
        return Gguf.model_validate({"model": _NAME}).open()
