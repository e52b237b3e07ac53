"""The models that clients can ask for by name: those of the library, and names that clients gave to adapters.

The disk is read at every question, so what `settle pull` or `settle tune` has just made is available at once.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from filelock import FileLock

from settle.base.files import home, write_json
from settle.base.run import present_names
from settle.base.server_state import client_names
from settle.infer.child_process import Draft
from settle.library.resolve import all_refs
from settle.library.store import all_models
from settle.server.models.model_entry import ModelEntry, completes_only, template_of
from settle.wire.errors import ApiError


class ModelCatalogue:
    """The models that can be asked for.

    models: entries to serve. is_fixed: serve these and adapters over them only, whatever comes into the store.
    drafts: by the resolved file of the model that they propose tokens for."""

    def __init__(
        self,
        models: Sequence[ModelEntry] = (),
        is_fixed: bool = False,
        drafts: Mapping[Path, Draft] = MappingProxyType({}),
    ) -> None:
        self.is_fixed = is_fixed
        self._models, self._drafts = tuple(models), dict(drafts)
        self._known: dict[str, tuple[ModelEntry, tuple[int, ...]]] = {}

    def entries(self) -> list[ModelEntry]:
        """Every model that can be asked for now."""
        return list({entry.id: entry for entry in self._all() if not entry.collection}.values())

    def offered(self) -> list[ModelEntry]:
        """Everything that can be asked for now: the models, and the collections of documents that they answer from."""
        models = self.entries()
        if self.is_fixed:
            return [*models, *(entry for entry in self._models if entry.collection)]
        return [*models, *document_models(models)]

    def find(self, name: str) -> ModelEntry:
        """Return the entry of that name. Raises ApiError (404) that lists the models."""
        wanted = name.removesuffix(":latest")
        known, stamp = self._known.get(wanted, (None, ()))
        if known is not None and stamp == _stamps(known):
            return known
        entries, present = self.offered(), present_names(wanted)
        for entry in entries:
            if entry.id in (wanted, present) or wanted in entry.aliases:
                self._known[wanted] = entry, _stamps(entry)
                return entry
        models = [entry for entry in entries if not entry.collection]
        if not wanted and len(models) == 1:
            return models[0]
        names = ", ".join(entry.id for entry in entries[:20])
        message = f"the model {name[:100]!r} does not exist here" if name else "the field 'model' is missing"
        fix = f"; available: {names}" if names else "; no models yet: `settle pull smollm2`"
        raise ApiError(404 if name else 400, message + fix, "model_not_found", "model")

    def draft_of(self, path: Path) -> Draft | None:
        return self._drafts.get(path.resolve())

    def _all(self) -> Iterator[ModelEntry]:
        yield from self._models
        entries = _library_entries()
        if self.is_fixed:
            models = [entry for entry in self._models if not entry.adapter and not entry.collection]
            names = {entry.path.resolve(): entry.id for entry in models}
            for entry in entries:
                if entry.adapter and (base := names.get(entry.path.resolve())):
                    adapter = entry.id.removeprefix(f"{entry.base}:")
                    yield replace(entry, id=f"{base}:{adapter}", base=base)
            return
        yield from entries
        yield from _aliased(entries)


def _stamps(entry: ModelEntry) -> tuple[int, ...]:
    """While these are unchanged, a name means the same: of the entry's files, and of the folders names come from."""
    names = (home() / "models", home() / "runs", home() / "collections", home() / "server" / "aliases.json")
    return tuple(_changed(path) for path in (entry.path, entry.adapter, *names) if path)


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _library_entries() -> list[ModelEntry]:
    """Return the models and adapters of the library, under its names, with the files that llama.cpp reads."""
    converted = {model.path: model.gguf for model in all_models() if model.gguf != model.path}
    entries = []
    for ref in all_refs():
        path, base = converted.get(ref.weights, ref.weights), ref.base.name if ref.base else ""
        origin, is_converted = ref.source.origin, ref.weights in converted
        entries.append(ModelEntry(ref.id, path, ref.adapter, base, ref.aliases, origin, is_converted=is_converted))
    return entries


def _aliased(entries: Sequence[ModelEntry]) -> Iterator[ModelEntry]:
    """Adapters under the names that clients gave them; a model of the same name has precedence."""
    by_id = {entry.id: entry for entry in entries}
    for name, given in client_names().items():
        target = present_names(given)
        if target in by_id and name not in by_id:
            yield replace(by_id[target], id=name, aliases=(), origin=f"another name of {target}")


LOCK_SECONDS = 10.0


def set_alias(name: str, target: str | None) -> None:
    """Set the name, or remove it when `target` is None. Raises OSError when the file cannot be written."""
    folder = home() / "server"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "aliases.lock", LOCK_SECONDS):  # requests run in threads, and other servers may be there
        known = client_names()
        known.pop(name, None)
        known |= {name: target} if target is not None else {}
        write_json(folder / "aliases.json", known)


def document_models(models: list[ModelEntry]) -> Iterator[ModelEntry]:
    """Every collection, answered by every model that takes turns. None where the extra `rag` is missing."""
    try:
        from settle.retrieve.index.collection import collection_names
    except ModuleNotFoundError:
        return
    collections = collection_names()
    for model in models if collections else ():
        with contextlib.suppress(ApiError):
            if model.path.exists() and template_of(model) and not completes_only(model):
                for name in collections:
                    yield with_documents(name, model)


def with_documents(collection: str, model: ModelEntry) -> ModelEntry:
    aliases = tuple(f"{collection}@{alias}" for alias in model.aliases)
    origin = f"the documents of {collection}, answered by {model.id}"
    return replace(model, id=f"{collection}@{model.id}", aliases=aliases, origin=origin, collection=collection)
