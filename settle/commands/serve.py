"""Serve models on one port that speaks OpenAI, Anthropic and Ollama."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady, Say, Warn
from settle.base.run import NAME, home
from settle.commands import Command

if TYPE_CHECKING:
    from settle.infer.child_process import Draft
    from settle.server.models.model_catalogue import Entry

LOCAL = ("127.0.0.1", "::1", "localhost")


class Serve(Command):
    """Serve models to every local client: OpenAI, Anthropic and Ollama on one port, on this machine only, with a key.

    Without a name: every model of the store and of the runs, loaded when it is asked for. A LoRA that `settle tune`
    makes is there at once, as base:name, without a restart. `settle connect` sets clients up.
    """

    positional: ClassVar[tuple[str, ...]] = ("models",)

    models: list[str] = Field(default_factory=list, description="what to serve: runs, models of the store, .gguf files")
    adapter: list[Path] = Field(default_factory=list, description="a LoRA over the first model: a run, or a .gguf file")
    draft: str | None = Field(
        None,
        description="for the first model, a small one that proposes tokens, for speed: a run of `settle distill "
        "--draft`, or any with the same tokens",
    )
    host: str = Field("127.0.0.1", description="where to listen; anything but the loopback is open to the network")
    port: int = Field(7388, ge=0, le=65535, description="0 takes a free one")
    no_key: bool = Field(False, description="need no key, on the loopback only")
    context: int | None = Field(None, gt=0, description="tokens of prompt and answer together, for each request")
    slots: int | None = Field(None, gt=0, le=256, description="requests that a model works on at the same time")
    threads: int | None = Field(None, gt=0, description="of each model; every core if not given")
    idle: float = Field(600.0, ge=0, description="seconds after which an unused model is unloaded; 0: never")
    most_models: int = Field(8, gt=0, description="models in memory at the same time")
    allow_host: list[str] = Field(default_factory=list, description="a name under which clients may ask")
    allow_origin: list[str] = Field(default_factory=list, description="a web page or browser extension that may ask")
    allow_pull: list[str] = Field(
        default_factory=list, description="where clients may pull models from: wheel, hub, ollama, lmstudio"
    )
    most_requests: int = Field(256, gt=0, description="requests at the same time, waiting ones too")
    timeout: float = Field(1800.0, gt=0, description="seconds that one request may take")
    log_prompts: bool = Field(False, description="keep what is asked in the audit file too")

    def run(self, events: Events) -> int:
        try:
            from settle.server import app
        except ModuleNotFoundError as e:
            raise UsageError(f"serving needs {e.name}", "pip install 'settle-lm[serve]'") from None
        from settle.base.server_state import allowed_origins, forget_server, note_server
        from settle.server.audit import Audit
        from settle.server.guard.guard import Limits
        from settle.server.guard.keys import server_key
        from settle.server.models.model_catalogue import Catalogue
        from settle.server.models.model_pool import Keeping

        if self.no_key and self.host not in LOCAL:
            raise UsageError("a server that others reach needs a key", "leave --no-key out, or --host")
        key = None if self.no_key else server_key()
        entries = self._entries()
        keeping = Keeping(
            context=self.context,
            slots=self.slots,
            threads=self.threads,
            idle_seconds=self.idle,
            most_models=self.most_models,
        )
        given = frozenset(self.allow_origin)
        serving = app.Serving(
            host=self.host,
            port=self.port,
            key=key,
            origins=lambda: given | allowed_origins(),
            hosts=frozenset(name.lower() for name in self.allow_host),
            limits=Limits(requests=self.most_requests, seconds=self.timeout),
        )
        catalogue = Catalogue(entries, bool(self.models), self._drafts(entries, events))
        audit = Audit(home() / "server" / "audit.jsonl", self.log_prompts)
        made = app.build_app(catalogue, keeping, serving, audit, frozenset(self.allow_pull))
        listening = app.listen(self.host, self.port)
        address = _address(self.host, listening.getsockname()[1])

        def ready() -> None:
            note_server(address, key is not None)
            self._told(events, address, key, catalogue)

        try:
            app.run(made, listening, ready)
        finally:
            forget_server(address)
            listening.close()
        events.emit(Say(text="stopped"))
        events.emit(ResultReady(result={"address": address, "stopped": True}))
        return 0

    def _entries(self) -> "list[Entry]":
        """What was named. Raises UsageError for what is not there."""
        from settle.library.resolve import resolve_gguf
        from settle.server.errors import Refusal
        from settle.server.models.model_catalogue import Entry, facts

        entries: list[Entry] = []
        for given in self.models:
            collection, name = _documents(given)
            found = resolve_gguf(name)
            if found.adapter:
                file = found.weights.resolve()
                over = next((e.id for e in entries if e.path.resolve() == file), found.weights.stem)
                entries.append(Entry(f"{over}:{found.name}", found.weights, found.adapter, over, (found.name,)))
            else:
                entries.append(Entry(found.name, found.path.absolute()))
            if collection:
                from settle.server.requests.document_chat import answering

                entries.append(answering(collection, entries.pop()))
        if self.adapter and not entries:
            raise UsageError("which model is the adapter for?", "settle serve MODEL --adapter NAME")
        for path in self.adapter:
            base = entries[0]
            if path.suffix == ".gguf":
                adapter, name = path.expanduser().absolute(), path.stem
            else:
                found = resolve_gguf(str(path))
                if found.adapter is None:
                    raise UsageError(f"{path} is no adapter", "give a run that tuned a LoRA, or its .gguf file")
                adapter, name = found.adapter, found.name
            if not adapter.is_file():
                raise UsageError(f"there is no file {path}", "give a run that tuned a LoRA, or its .gguf file")
            entries.append(Entry(f"{base.id}:{name}", base.path, adapter, base.id, (name,)))
        for entry in entries:
            if not entry.path.is_file():
                raise UsageError(f"there is no file {entry.path}", "check the path")
            try:
                facts(entry.path)
            except Refusal as refusal:
                raise UsageError(refusal.message, "`settle models` tells what can be served") from None
        return entries

    def _drafts(self, entries: "list[Entry]", events: Events) -> "dict[Path, Draft]":
        """For the file of the first model."""
        if not self.draft:
            return {}
        if not entries:
            raise UsageError("which model is the draft for?", "settle serve MODEL --draft NAME")
        from settle.data.tokenizer.compatibility import require_same_tokens
        from settle.formats.gguf import read_gguf
        from settle.infer.draft import draft_for
        from settle.library.reference import ModelRef
        from settle.model.source import Source

        first = ModelRef(entries[0].id, "model", Source(entries[0].path, "gguf", entries[0].id))
        draft = draft_for(first, self.draft, events)
        ours, its = (read_gguf(path).metadata for path in (first.path, draft.path))
        require_same_tokens(ours, its, (first.name, self.draft))  # now, and not when the model is first asked for
        return {first.path.resolve(): draft}

    def _told(self, events: Events, address: str, key: str | None, catalogue: object) -> None:
        from settle.server.models.model_catalogue import Catalogue

        assert isinstance(catalogue, Catalogue)
        names = [entry.id for entry in catalogue.offered()]
        rows = [["OpenAI", f"{address}/v1"], ["Anthropic", address], ["Ollama", address]]
        rows.append(["key", key or "none needed (--no-key)"])
        if self.draft:
            rows.append(["draft", f"{self.draft} proposes for {names[0]}"])
        rows.append(["models", ", ".join(names) or "none yet: `settle pull smollm2`"])
        if self.host not in LOCAL:
            events.emit(Warn(text="everyone on the network may ask who has the key; nothing is encrypted on the way"))
        note = "`settle connect CLIENT` sets a client up and tries it; Ctrl-C stops the server"
        events.emit(Listing(title="settle serves", columns=("what", "where"), rows=rows, note=note))


def _documents(given: str) -> tuple[str, str]:
    """The collection and the model of `docs@smollm2`, no collection for a model alone."""
    collection, at, model = given.partition("@")
    is_there = bool(at) and NAME.fullmatch(collection) and (home() / "collections" / collection).is_dir()
    return (collection, model) if is_there else ("", given)


def _address(host: str, port: int) -> str:
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"
