"""Find an offer by name, fetch it, check it, and put it into the store."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from settle.base.errors import FormatError, SettleError, UsageError, cannot_write
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady, Say, Warn
from settle.base.files import sweep_leftovers
from settle.base.run import NAME
from settle.base.words.amounts import amount
from settle.formats.gguf import embeds, read_gguf
from settle.library.catalogue import catalogue, catalogue_file
from settle.library.pull import Offer, hub, neighbours, wheels
from settle.library.pull.encoder_gguf import encoder_to_gguf, has_gguf
from settle.library.store import (
    StoredModel,
    add_model,
    all_models,
    damaged_models,
    find_model,
    model_name,
    stamp_of,
    store,
)
from settle.model.encoder_folder import EncoderFolder
from settle.model.pretrained import Pretrained
from settle.model.source import Kind, Source, hash_of

# before the id in the address of a model's page
_HUB_PAGE = re.compile(r"^(https?://)?(www\.)?(huggingface\.co|hf\.co)/")
USUAL_TYPE = "q4_k_m"  # of a model that is pulled by its name in the catalogue
PULLING = ".pulling-"  # in the store: what is being pulled, and by which process


def find_offer(what: str) -> Offer:
    """Find what `what` names. Raises UsageError.

    With a prefix (hub: wheel: ollama: lmstudio:) only there; otherwise a path, a model of the short catalogue, what
    another program has on this machine, a model on the hub.
    """
    prefix, _, rest = what.partition(":")
    places: dict[str, Callable[[str], Offer | None]] = {
        "wheel": wheels.offer,
        "ollama": neighbours.ollama_offer,
        "lmstudio": neighbours.lmstudio_offer,
        "hub": hub.offer,
    }
    if prefix in places and rest:
        offer = places[prefix](rest)
        if offer is None:
            raise UsageError(f"there is no {rest!r} in {prefix}", "`settle pull` lists what there is")
        return offer
    path = Path(what).expanduser()
    if path.exists():
        return _of_path(path)
    if what.startswith(("./", "../", "/", "~")) or what.endswith(".gguf"):
        raise UsageError(f"there is no file or folder {what!r}", "check the path")
    what = _HUB_PAGE.sub("", what)
    listed = wheels.catalogue_offer(what) or _pair_model_offer(what)
    listed = listed or neighbours.ollama_offer(what) or neighbours.lmstudio_offer(what)
    offer = listed or hub.offer(what) or _known_offer(what)
    if offer is None:
        known = ", ".join(catalogue())
        raise UsageError(
            f"there is no model {what!r}",
            f"a hub id (owner/name), a path, a name that `settle models fit --all` lists, or one of: {known}",
        )
    return offer


def pull_by_name(what: str, name: str | None, again: bool, events: Events) -> StoredModel:
    """Return the model that `what` names, fetched unless it is here.

    name: instead of its own. again: fetch it in any case. Raises UsageError when the name is taken by another model,
    and what `find_offer` and `pull` raise.
    """
    offer = find_offer(what)
    wanted = name or offer.name
    if not NAME.fullmatch(wanted):
        raise UsageError(f"{wanted!r} is not a usable name", "letters, digits, dot, dash and underscore")
    here = known_already(wanted)
    if here is not None and here.origin != offer.origin:
        raise UsageError(f"{wanted!r} is another model here: {here.origin}", "choose another --name")
    return pull(offer, name, events) if here is None or again else here


def pull(offer: Offer, name: str | None, events: Events) -> StoredModel:
    """Fetch a model, check it, put it into the store.

    What is there under that name already is only replaced at the end. An embedder of the BERT kind is kept as GGUF,
    which everything here that embeds reads. Raises ResourceError when there is no room, FormatError when the files are
    not sound or not what was promised.
    """
    wanted = name or offer.name
    target = store() / wanted
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep_leftovers(target.parent, PULLING)
        folder = tempfile.TemporaryDirectory(prefix=f"{PULLING}{os.getpid()}-", dir=target.parent)
    except OSError as e:
        raise cannot_write(store(), e) from None
    with folder as fresh, _room(target.parent):
        path = offer.fetch(Path(fresh), events)
        kind: Kind = "safetensors" if path.is_dir() else "gguf"
        if kind == "gguf":
            read_gguf(path)
        events.emit(Say(text="checking its hash …"))
        sha256 = hash_of(path)
        if offer.sha256 and sha256 != offer.sha256:
            raise FormatError(
                f"{path.name} has the sha256 {sha256[:16]}…, {offer.sha256[:16]}… was promised", "pull it again"
            )
        encoder = EncoderFolder.find(path) if kind == "safetensors" else None
        if encoder and has_gguf(encoder):
            folder_of_bert = path
            path = encoder_to_gguf(path, Path(fresh) / f"{offer.name}.gguf", offer.name, offer.license)
            if folder_of_bert.is_relative_to(fresh):
                shutil.rmtree(folder_of_bert)
            kind, sha256 = "gguf", hash_of(path)
        elif encoder and encoder.use == "embed":
            what = f"{offer.name} is an embedder of the family {encoder.family.model_type}"
            raise FormatError(f"{what}, which is searched with as GGUF only", "pull its GGUF file")
        elif encoder:
            encoder.classifier()  # refused while nothing of the store is changed
        elif kind == "safetensors":
            Pretrained.open(Source(path, kind, wanted))  # refused while nothing of the store is changed
        if path.is_relative_to(fresh):
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True, exist_ok=True)
            for entry in Path(fresh).iterdir():
                entry.rename(target / entry.name)
            path = target / path.relative_to(fresh)
        model = StoredModel(wanted, kind, path, sha256, offer.origin, offer.license, stamp_of(path))
        add_model(model)
    return model


def known_already(name: str) -> StoredModel | None:
    """Return the model of that name, if it is in the store with its files."""
    try:
        return find_model(name)
    except SettleError:
        return None


def _known_offer(what: str) -> Offer | None:
    """Return a model that `settle models fit` lists, or None for another name.

    It is a GGUF file of its type, or of one named after a colon, or what its maker publishes where the catalogue knows
    no such file.
    """
    name, _, type_name = what.lower().partition(":")
    known = next((model for model in catalogue_file().known if model.name == name), None)
    if known is None:
        return None
    place = f"{known.gguf}:{type_name or known.only_type or USUAL_TYPE}" if known.gguf else known.hub
    offer = hub.offer(place)
    return offer and replace(offer, name=f"{name}-{type_name}" if type_name else name)


def _pair_model_offer(what: str) -> Offer | None:
    """Return a reranker or a groundedness model of the catalogue, or None for another name."""
    entry = catalogue_file().pair_models.get(what)
    offer = hub.offer(entry.hub) if entry else None
    return replace(offer, name=what, license=entry.license) if entry and offer else None


def _of_path(path: Path) -> Offer:
    if path.is_dir() and not (path / "config.json").exists():
        files = sorted(path.glob("*.gguf"))
        if len(files) != 1:
            raise UsageError(f"{path} holds no model, or several", "give a .gguf, or a folder in Hugging Face's layout")
        path = files[0]
    full = path.resolve()
    return Offer("path", str(full), model_name(full.stem if full.is_file() else full.name), lambda _, __: full)


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if isinstance(e, SettleError) or e.filename is not None and not str(e.filename).startswith(str(folder)):
            raise
        raise cannot_write(folder, e) from None


def list_available(events: Events) -> None:
    """List the models of the store, of other programs on this machine, and of the catalogue."""
    for error in damaged_models():
        events.emit(Warn(text=str(error)))
    models, others = all_models(), list(neighbours.neighbours())
    taken = {m.origin for m in models}
    rows = [[m.name, "here", m.origin, m.license] for m in models]
    rows += [[n.name, n.where, "", ""] for n in others if f"{n.where}:{n.name}" not in taken]
    rows += [[name, "wheel", e.about, e.license] for name, e in catalogue().items() if f"wheel:{name}" not in taken]
    pairs = catalogue_file().pair_models
    rows += [[n, "hub", e.about, e.license] for n, e in pairs.items() if f"hub:{e.hub}" not in taken]
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
    if model.kind == "safetensors" and (encoder := EncoderFolder.find(model.path)):
        reads = "orders passages for `settle ask`"
        checks = "checks sentences for `settle ask`, once `settle index NAME --check` has calibrated it"
        return reads if encoder.use == "rerank" else checks
    try:
        opened = Pretrained.open(model.source)
    except SettleError as e:
        return f"`settle chat {model.name}` talks to it, and it cannot be tuned: {e.what}"
    millions = opened.part.num_parameters / 1e6
    return (
        f"{millions:,.0f} M parameters ({opened.part.model_type}); "
        f"`settle chat {model.name}` talks to it, `settle tune {model.name} FILE` tunes it"
        + (f"; {opened.left_out_text}" if opened.left_out else "")
    )
