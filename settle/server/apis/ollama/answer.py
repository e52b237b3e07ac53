"""Ollama's lines of one answer, made from OpenAI's chunks."""

import datetime
import functools
import hashlib
import json
import math
import time
from collections.abc import AsyncGenerator, Iterator

from starlette.responses import Response

from settle.base.files import parse_json
from settle.formats.gguf import read_gguf
from settle.infer.child_process import Json
from settle.library.facts import TEMPLATE_KEY, Facts
from settle.library.store import StoredModel, all_models, stamp_of
from settle.server.gateway import Call, streamed
from settle.server.models.loaded_model import LoadedModel
from settle.server.models.model_catalogue import ModelCatalogue
from settle.server.models.model_entry import ModelEntry, capabilities, facts, template_of
from settle.server.models.model_pool import ModelPool
from settle.wire.errors import ApiError
from settle.wire.types import Chunk, JsonObject, Logprobs, ToolCall

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


LINES = "application/x-ndjson"
FIELD_NAMES = {"response_format": "format", "reasoning_effort": "think"}  # OpenAI's → Ollama's, in messages


class LineWriter:
    """Writer of lines of /api/chat, with `message`, or of /api/generate, with `response` and `thinking`.

    The last one has counts and durations in nanoseconds too. name: of the model, as the client called it. loading:
    nanoseconds that loading the model took.
    """

    def __init__(self, entry: ModelEntry, name: str, is_chat: bool, context: int, loading: int) -> None:
        self.entry, self.context, self.loading = entry, context, loading
        self._model, self._is_chat = name or entry.id, is_chat
        self._began = time.monotonic_ns() - loading
        self._calls: dict[int, dict[str, str]] = {}  # as far as they were streamed, by index
        self._reason = "stop"

    def lines(self, chunk: Chunk) -> Iterator[Json]:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            for call in delta.get("tool_calls") or ():
                self._add_call(call)
            text, thought = delta.get("content") or "", delta.get("reasoning_content")
            if text or thought or choice.get("logprobs"):
                yield self._line(text, thought, choice.get("logprobs"))
            if choice.get("finish_reason"):
                self._reason = "length" if choice["finish_reason"] == "length" else "stop"
                if self._calls:
                    yield from self._call_lines()
        if chunk.get("usage"):
            yield self.done(self._reason) | _counts(chunk)

    def done(self, reason: str) -> Json:
        line = self._line("") | {"done": True, "done_reason": reason}
        return line | {"total_duration": time.monotonic_ns() - self._began, "load_duration": self.loading}

    def merged(self, lines: list[Json]) -> Json:
        whole = {**lines[-1]}
        if self._is_chat:
            messages = [line["message"] for line in lines]
            whole["message"] = {"role": "assistant", "content": "".join(message["content"] for message in messages)}
            if thought := "".join(message.get("thinking", "") for message in messages):
                whole["message"]["thinking"] = thought
            if calls := [call for message in messages for call in message.get("tool_calls", ())]:
                whole["message"]["tool_calls"] = calls
        else:
            whole["response"] = "".join(line["response"] for line in lines)
            if thought := "".join(line.get("thinking", "") for line in lines):
                whole["thinking"] = thought
        if logprobs := [token for line in lines for token in line.get("logprobs", ())]:
            whole["logprobs"] = logprobs
        return whole

    def _line(self, text: str, thought: str | None = None, logprobs: Logprobs | None = None) -> Json:
        line: Json = {"model": self._model, "created_at": _written(datetime.datetime.now(datetime.UTC))}
        if self._is_chat:
            line["message"] = {"role": "assistant", "content": text}
            if thought:
                line["message"]["thinking"] = thought
        else:
            line["response"] = text
            if thought:
                line["thinking"] = thought
        line["done"] = False
        if logprobs:
            line["logprobs"] = [_tidied(token) for token in logprobs["content"]]
        return line

    def _add_call(self, call: ToolCall) -> None:
        """Ollama sends a call whole, with its arguments as an object."""
        known = self._calls.setdefault(call.get("index", 0), {"id": "", "name": "", "arguments": ""})
        function = call.get("function", {})
        known["id"] = call.get("id") or known["id"]
        known["name"] += function.get("name") or ""
        known["arguments"] += function.get("arguments") or ""

    def _call_lines(self) -> Iterator[Json]:
        calls = []
        for index, call in sorted(self._calls.items()):
            try:
                arguments = parse_json(call["arguments"] or "{}")
            except ValueError:  # cut off by num_predict: sent as text, so that nothing is lost
                yield self._line(f"{call['name']} {call['arguments']}")
                continue
            function = {"index": index, "name": call["name"], "arguments": arguments}
            calls.append({"id": call["id"], "function": function})
        if calls:
            line = self._line("")
            line["message"]["tool_calls"] = calls
            yield line


def _counts(chunk: Chunk) -> Json:
    usage, timings = chunk["usage"], chunk.get("timings", {})
    counts: Json = {
        "prompt_eval_count": usage["prompt_tokens"],
        "prompt_eval_duration": int(timings.get("prompt_ms", 0) * 1e6),
        "eval_count": usage["completion_tokens"],
        "eval_duration": int(timings.get("predicted_ms", 0) * 1e6),
    }
    return counts | {"settle": chunk["settle"]} if "settle" in chunk else counts


def _tidied(token: Json) -> Json:
    """Return a token's probability without fields that Ollama does not have."""
    fields = {name: value for name, value in token.items() if name in ("token", "logprob", "bytes")}
    tops = token.get("top_logprobs")
    return fields | ({"top_logprobs": [_tidied(top) for top in tops]} if tops else {})


async def streamed_lines(call: Call, lines: AsyncGenerator[JsonObject]) -> Response:
    """Return a response of lines. Raises what the first line raises."""
    pieces = (_bytes(line) async for line in lines)
    return await streamed(pieces, call.record, lambda error: _bytes(error_line(error)), LINES)


def error_line(error: ApiError) -> JsonObject:
    message, param = error.message, error.param or ""
    if param in FIELD_NAMES and message.startswith(f"{param}: "):
        message = FIELD_NAMES[param] + message.removeprefix(param)
    return {"error": message}


def _bytes(line: JsonObject) -> bytes:
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"
