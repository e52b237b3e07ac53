"""What Ollama's API says about models: all of them, those that are loaded, and one in detail."""

import datetime
import functools
import hashlib
import math
import time

from settle.formats.gguf import read_gguf
from settle.infer.child_process import Json
from settle.library.facts import TEMPLATE_KEY, Facts
from settle.library.store import StoredModel, all_models, stamp_of
from settle.server.models.loaded_model import LoadedModel
from settle.server.models.model_catalogue import ModelCatalogue
from settle.server.models.model_entry import ModelEntry
from settle.server.models.model_facts import capabilities, facts, template_of
from settle.server.models.model_pool import ModelPool
from settle.wire.errors import ApiError
from settle.wire.types import JsonObject

FOR_EVER = datetime.datetime(2318, 1, 1, tzinfo=datetime.UTC)  # about what Ollama says of models that it keeps


def tagged(name: str) -> str:
    """Return a name as Ollama writes it: clients add the tag themselves, and look for the result in the list."""
    return name if ":" in name else f"{name}:latest"


def listed(catalogue: ModelCatalogue) -> list[Json]:
    stored = {model.name: model for model in all_models()}
    return [_row(entry, stored) for entry in catalogue.offered()]


def running(pool: ModelPool) -> list[Json]:
    """Return the models that are loaded, each once, with the memory of all its children."""
    stored = {model.name: model for model in all_models()}
    entries = {entry.path: entry for entry in pool.catalogue.entries() if not entry.adapter}
    rows: dict[str, Json] = {}
    for loaded in pool.loaded():
        entry = entries.get(loaded.key.path)
        if entry is None:
            continue  # its file is gone, and it ends with its last answer
        empty = _row(entry, stored) | {"size": 0, "size_vram": 0, "context_length": 0}
        row = rows.setdefault(entry.id, empty)
        row["size"] += loaded.resident_bytes
        row["context_length"] = max(row["context_length"], loaded.context)
        row["expires_at"] = max(row.get("expires_at", ""), _expiry(loaded))
        row.pop("modified_at", None)
    return list(rows.values())


def shown(pool: ModelPool, entry: ModelEntry, verbose: bool) -> JsonObject:
    """Return a model in detail. Raises ApiError."""
    known = facts(entry.path)
    stored = next((model for model in all_models() if model.name == entry.id), None)
    template = template_of(entry) or ""
    loaded = pool.find(entry)
    name = entry.id.removeprefix(f"{entry.collection}@")
    lines = [f"FROM {entry.base or name}", *([f"ADAPTER {name}"] if entry.adapter else [])]
    context = loaded.context if loaded else pool.settings.context_of(known)
    fields: JsonObject = {
        "license": stored.license if stored else "",
        "modelfile": "\n".join([*lines, f"PARAMETER num_ctx {context}"]) + "\n",
        "parameters": f"num_ctx {context}",
        "template": template,
        "details": _details(entry, known),
        "model_info": _info(entry, known, verbose),
        "capabilities": capabilities(entry),
        "modified_at": _moment(entry.created),
    }
    if verbose:
        tensors = read_gguf(entry.path).tensors
        fields["tensors"] = [{"name": n, "type": str(t.dtype), "shape": list(t.shape)} for n, t in tensors.items()]
    return fields


def now() -> str:
    """Return the time as Ollama writes it."""
    return _written(datetime.datetime.now(datetime.UTC))


def _row(entry: ModelEntry, stored: dict[str, StoredModel]) -> Json:
    row: Json = {"name": tagged(entry.id), "model": tagged(entry.id), "modified_at": _moment(entry.created)}
    row |= {"size": entry.path.stat().st_size if entry.path.is_file() else 0, "digest": _digest(entry, stored)}
    row["details"] = {"parent_model": "", "format": "gguf", "family": "", "families": []}
    try:
        row["details"] = _details(entry, facts(entry.path))
        row["capabilities"] = capabilities(entry)
    except ApiError as e:  # it is listed with its fault
        row["broken"] = e.message
    return row


def _details(entry: ModelEntry, known: Facts) -> Json:
    return {
        "parent_model": entry.base,
        "format": "gguf",
        "family": known.architecture,
        "families": [known.architecture],
        "parameter_size": _rounded(known.parameters),
        "quantization_level": known.quantization,
    }


def _info(entry: ModelEntry, known: Facts, verbose: bool) -> JsonObject:
    """Return the metadata of the file. verbose: with the lists of its tokenizer, which are long."""
    meta = read_gguf(entry.path).metadata
    fields = {k: None if isinstance(v, list) and not verbose else v for k, v in meta.items() if k != TEMPLATE_KEY}
    fields = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}
    return fields | {
        "general.architecture": known.architecture,
        "general.parameter_count": known.parameters,
        f"{known.architecture}.context_length": known.context,
        f"{known.architecture}.embedding_length": known.width,
    }


def _digest(entry: ModelEntry, stored: dict[str, StoredModel]) -> str:
    """Return the sha256 of the file where the store knows it.

    Else it is of its name, size and time, which change when the file does."""
    model = stored.get(entry.id)
    if model is not None and not entry.adapter and model.path == entry.path and model.sha256:
        return model.sha256
    files = [file for file in (entry.path, entry.adapter) if file is not None and file.exists()]
    return _hashed(entry.id, *(stamp_of(file) for file in files))


@functools.lru_cache(1024)
def _hashed(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _expiry(loaded: LoadedModel) -> str:
    left = loaded.idle_seconds if loaded.busy else loaded.expires - time.monotonic()
    if loaded.idle_seconds <= 0 or left > 1e9:
        return _written(FOR_EVER)
    return _written(datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=max(left, 0)))


def _moment(seconds: int) -> str:
    return _written(datetime.datetime.fromtimestamp(seconds, datetime.UTC))


def _written(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _rounded(parameters: int) -> str:
    """As Ollama: 134.52M, 1.2B."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if parameters >= size:
            return f"{parameters / size:.{1 if unit == 'B' else 2}f}{unit}"
    return str(parameters)
