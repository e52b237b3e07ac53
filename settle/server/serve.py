"""What `settle serve` does: finds the models that were named, starts the server, and says where it listens."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from settle.audit.door import listen
from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady, Say, Warn
from settle.base.files import home
from settle.base.server_state import allowed_origins, forget_server, key_file, note_server, server_key
from settle.data.tokenizer.vocabulary import require_same_tokens
from settle.formats.gguf import read_gguf
from settle.infer.child_process import Draft
from settle.infer.engine import draft_for
from settle.library.reference import ModelRef
from settle.library.resolve import is_collection, resolve_gguf
from settle.model.source import Source
from settle.server.app import build_app
from settle.server.audit import Audit
from settle.server.guard import Access, Limits
from settle.server.http_server import LOOPBACK, run
from settle.server.models.model_catalogue import ModelCatalogue, with_documents
from settle.server.models.model_entry import ModelEntry, facts
from settle.server.models.model_loader import PoolSettings
from settle.wire.errors import ApiError


@dataclass(frozen=True)
class ModelChoice:
    """names: models to serve; empty serves all of the library. adapters, draft: for the first of them."""

    names: Sequence[str] = ()
    adapters: Sequence[Path] = ()
    draft: str | None = None


@dataclass(frozen=True)
class Network:
    """Where the server listens, and whom it lets in.

    origins, hosts: beside those of `settle connect` and the loopback. pull_from: sources that clients may pull
    models from. requests: at the same time; seconds: that one may take."""

    host: str = "127.0.0.1"
    port: int = 7388
    needs_key: bool = True
    origins: Sequence[str] = ()
    hosts: Sequence[str] = ()
    pull_from: Sequence[str] = ()
    requests: int = Limits.requests
    seconds: float = Limits.seconds

    @property
    def is_local(self) -> bool:
        return self.host in LOOPBACK


def serve(models: ModelChoice, network: Network, settings: PoolSettings, log_prompts: bool, events: Events) -> None:
    """Serve until the process is told to stop. Raises UsageError."""
    if not network.needs_key and not network.is_local:
        raise UsageError("--no-key is only allowed on loopback", "leave out --no-key, or --host")
    key = server_key() if network.needs_key else None
    entries = find_entries(models)
    drafts = _drafts(models.draft, entries, events) if models.draft else {}
    catalogue = ModelCatalogue(entries, bool(models.names), drafts)
    allowed = frozenset(network.origins)
    access = Access(
        key=key,
        origins=lambda: allowed | allowed_origins(),
        hosts=frozenset(name.lower() for name in network.hosts),
        is_local=network.is_local,
    )
    audit = Audit(home() / "server" / "audit.jsonl", log_prompts)
    limits = Limits(requests=network.requests, seconds=network.seconds)

    def show(line: str) -> None:
        events.emit(Say(text=line))

    server = build_app(catalogue, settings, access, limits, audit, frozenset(network.pull_from), show)
    listening = listen(network.host, network.port)
    address = _address(network.host, listening.getsockname()[1])

    def on_ready() -> None:
        note_server(address, key is not None)
        if not network.is_local:
            text = "everyone on the network who has the key can use this server; the connection is not encrypted"
            events.emit(Warn(text=text))
        _report(events, address, key, models, [entry.id for entry in catalogue.offered()])

    try:
        run(server.asgi, listening, on_ready)
    finally:
        forget_server(address)
        listening.close()
    events.emit(Say(text="stopped"))
    events.emit(ResultReady(result={"address": address, "stopped": True}))


def find_entries(models: ModelChoice) -> list[ModelEntry]:
    """Return the models that were named. Raises UsageError for one that does not exist."""
    entries: list[ModelEntry] = []
    for name in models.names:
        entries.append(_entry(name, entries))
    if models.adapters and not entries:
        raise UsageError("--adapter needs a model", "settle serve MODEL --adapter NAME")
    entries += [_adapter_entry(path, entries[0]) for path in models.adapters]
    for entry in entries:
        if not entry.path.is_file():
            raise UsageError(f"there is no file {entry.path}", "check the path")
        try:
            facts(entry.path)
        except ApiError as error:
            raise UsageError(error.message, "`settle models` lists what can be served") from None
    return entries


def _entry(name: str, others: Sequence[ModelEntry]) -> ModelEntry:
    """others: entries whose names an adapter over the same file uses."""
    collection, at, model = name.partition("@")
    if at and is_collection(collection):
        return with_documents(collection, _entry(model, others))
    ref = resolve_gguf(name)
    if not ref.adapter:
        return ModelEntry(ref.name, ref.path.absolute())
    file = ref.weights.resolve()
    base = next((other.id for other in others if other.path.resolve() == file), ref.weights.stem)
    return ModelEntry(f"{base}:{ref.name}", ref.weights, ref.adapter, base, (ref.name,))


def _adapter_entry(path: Path, base: ModelEntry) -> ModelEntry:
    fix = "give a run that tuned a LoRA, or its .gguf file"
    if path.suffix == ".gguf":
        adapter, name = path.expanduser().absolute(), path.stem
    else:
        ref = resolve_gguf(str(path))
        if ref.adapter is None:
            raise UsageError(f"{path} is not an adapter", fix)
        adapter, name = ref.adapter, ref.name
    if not adapter.is_file():
        raise UsageError(f"there is no file {path}", fix)
    return ModelEntry(f"{base.id}:{name}", base.path, adapter, base.id, (name,))


def _drafts(name: str, entries: Sequence[ModelEntry], events: Events) -> dict[Path, Draft]:
    if not entries:
        raise UsageError("--draft needs a model", "settle serve MODEL --draft NAME")
    first = entries[0]
    draft = draft_for(ModelRef(first.id, "model", Source(first.path, "gguf", first.id)), name, events)
    model_metadata, draft_metadata = (read_gguf(path).metadata for path in (first.path, draft.path))
    # now, and not when the model is first used
    require_same_tokens(model_metadata, draft_metadata, (first.id, name))
    return {first.path.resolve(): draft}


def _report(events: Events, address: str, key: str | None, models: ModelChoice, names: Sequence[str]) -> None:
    rows = [["OpenAI", f"{address}/v1"], ["Anthropic", address], ["Ollama", address]]
    # where output is no terminal it may be a service's log, which others read and which stays
    shown = key if key is None or sys.stdout.isatty() else f"the text of {key_file()}"
    rows.append(["key", shown or "none needed (--no-key)"])
    if models.draft:
        rows.append(["draft", f"{models.draft} proposes tokens for {names[0]}"])
    rows.append(["models", ", ".join(names) or "none yet: `settle pull smollm2`"])
    note = "`settle connect CLIENT` sets a client up and checks it; Ctrl-C stops the server"
    events.emit(Listing(title="settle serves", columns=("what", "where"), rows=rows, note=note))


def _address(host: str, port: int) -> str:
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"
