"""Serve models on one port that speaks OpenAI, Anthropic and Ollama."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.python_command import extra_command
from settle.commands import Command
from settle.machine.threads import ThreadSettings


class Serve(ThreadSettings, Command):
    """Serve models to OpenAI, Anthropic and Ollama clients.

    All use one local port, protected by an API key. Without a name, every model of the store and of the runs is served,
    loaded when a client uses it. A LoRA that `settle tune` makes is available at once as base:name, without a restart.
    `settle connect` sets clients up.
    """

    positional: ClassVar[tuple[str, ...]] = ("models",)

    models: list[str] = Field(default_factory=list, description="runs, models of the store, or .gguf files to serve")
    adapter: list[Path] = Field(default_factory=list, description="LoRA over the first model: a run or a .gguf file")
    draft: str | None = Field(
        None,
        description="small model that proposes tokens for the first one, for speed: a run of `settle distill --draft`, "
        "or any model with the same tokens",
    )
    host: str = Field("127.0.0.1", description="address to listen on; any but the loopback is open to the network")
    port: int = Field(7388, ge=0, le=65535, description="0 takes a free one")
    no_key: bool = Field(False, description="require no API key; on the loopback only")
    context: int | None = Field(None, gt=0, description="tokens per request and answer; at most what a model knows")
    slots: int | None = Field(None, gt=0, le=256, description="requests that a model answers at the same time")
    idle: float = Field(600.0, ge=0, description="seconds until an unused model is unloaded; 0: never")
    most_models: int = Field(8, gt=0, description="models in memory at the same time")
    allow_host: list[str] = Field(default_factory=list, description="host name that clients may use for this server")
    allow_origin: list[str] = Field(default_factory=list, description="web page or browser extension to let in")
    allow_pull: list[str] = Field(
        default_factory=list, description="source that clients may pull models from: wheel, hub, ollama, lmstudio"
    )
    most_requests: int = Field(256, gt=0, description="requests at the same time, including those that wait")
    timeout: float = Field(1800.0, gt=0, description="seconds that one request may take")
    log_prompts: bool = Field(False, description="write prompts to the audit file too")

    def door(self) -> tuple[str, int]:
        return self.host, self.port

    def run(self, events: Events) -> int:
        try:
            from settle.server.models.model_loader import PoolSettings
            from settle.server.serve import ModelChoice, Network, serve
        except ModuleNotFoundError as e:
            raise UsageError(f"serving needs {e.name}", extra_command("serve")) from None
        allowed = self.allow_origin, self.allow_host, self.allow_pull
        network = Network(*self.door(), not self.no_key, *allowed, self.most_requests, self.timeout)
        settings = PoolSettings(self.context, self.slots, self.threads, self.idle, self.most_models)
        serve(ModelChoice(self.models, self.adapter, self.draft), network, settings, self.log_prompts, events)
        return 0
