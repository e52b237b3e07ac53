"""What `settle pull` says: the models that are here or could be without a download, and what one is good for."""

from settle.base.errors import SettleError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady, Say, Warn
from settle.base.words.amounts import amount
from settle.formats.gguf import embeds, read_gguf
from settle.library.catalogue import catalogue
from settle.library.pull.neighbours import neighbours
from settle.library.pull.pull import find_offer, known_already
from settle.library.store import StoredModel, all_models, damaged_models
from settle.model.pretrained import Pretrained


def list_available(events: Events) -> None:
    """List the models of the store, of other programs on this machine, and of the catalogue."""
    for error in damaged_models():
        events.emit(Warn(text=str(error)))
    models, others = all_models(), list(neighbours())
    taken = {m.origin for m in models}
    rows = [[m.name, "here", m.origin, m.license] for m in models]
    rows += [[n.name, n.where, "", ""] for n in others if f"{n.where}:{n.name}" not in taken]
    rows += [[name, "wheel", e.about, e.license] for name, e in catalogue().items() if f"wheel:{name}" not in taken]
    events.emit(Listing(columns=("name", "where", "what", "license"), rows=rows, note="`settle pull NAME` gets one"))
    listed = [{"name": m.name, "path": str(m.path), "sha256": m.sha256, "origin": m.origin} for m in models]
    events.emit(ResultReady(result={"models": listed, "others": [{"where": n.where, "name": n.name} for n in others]}))


def show_offer(what: str, name: str | None, events: Events) -> None:
    """Show where a model would come from, what it takes, and its name; nothing is fetched.

    Raises what `find_offer` raises.
    """
    offer = find_offer(what)
    facts, here = offer.facts(), known_already(name or offer.name)
    size = "its size is only known as it is fetched" if facts.num_bytes is None else amount(facts.num_bytes, "bytes")
    takes = f"{size}, from {facts.host}" if facts.host else "on this machine already, and linked from there"
    text = f"{offer.origin}: {takes}; it would be called {name or offer.name}"
    events.emit(Say(text=text + (f", which is {here.origin} now" if here else "")))
    result = {"name": name or offer.name, "origin": offer.origin, "host": facts.host, "bytes": facts.num_bytes,
              "files": list(facts.files), "license": offer.license, "here": here.origin if here else None}  # fmt: skip
    events.emit(ResultReady(result=result))


def usage_of(model: StoredModel) -> str:
    """Say what can be done with a model, in a line."""
    if model.kind == "gguf" and embeds(read_gguf(model.path).metadata):
        return "`settle index` finds documents with it, and `settle serve` gives its vectors at /v1/embeddings"
    try:
        opened = Pretrained.open(model.source)
    except SettleError as e:
        return f"`settle chat {model.name}` talks to it, and it cannot be tuned: {e.what}"
    millions = opened.part.num_parameters / 1e6
    return (
        f"{millions:,.0f} M parameters ({opened.part.model_type}); "
        f"`settle chat {model.name}` talks to it, `settle tune {model.name} FILE` tunes it"
    )
