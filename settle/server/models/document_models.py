"""Collections of documents as models: `docs@smollm2` answers from `docs`, written by smollm2."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from settle.server.errors import ApiError
from settle.server.models.model_entry import ModelEntry
from settle.server.models.model_facts import completes_only, template_of


def document_models(models: list[ModelEntry]) -> Iterator[ModelEntry]:
    """Every collection, answered by every model that takes turns. None where the extra `rag` is missing."""
    try:
        from settle.retrieve.index.collection_folder import collection_names
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
