"""Measure settle's own claims on this machine."""

from typing import ClassVar, Literal

from pydantic import Field

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.commands import Command
from settle.machine.threads import ThreadSettings


class Bench(ThreadSettings, Command):
    """Measure what the server costs beside llama.cpp's own on this machine: `settle bench serve MODEL`.

    Both are the same process, measured in turns: llama.cpp's port, and settle's in front of it.
    """

    positional: ClassVar[tuple[str, ...]] = ("what", "model")

    what: Literal["serve"] = Field(description="what to measure: serve")
    model: str = Field(description="a run, a model of the store, or a .gguf file; it needs a chat template")
    streams: list[int] = Field(default_factory=lambda: [1, 8, 32], description="answers at the same time")
    rounds: int = Field(5, gt=0, description="rounds per server")
    tokens: int = Field(64, gt=1, description="tokens per answer")

    def run(self, events: Events) -> int:
        try:
            from settle.server.bench.overhead import bench_server
        except ModuleNotFoundError as e:
            raise UsageError(f"serving needs {e.name}", "pip install 'settle-lm[serve]'") from None
        bench_server(self.model, self.streams, self.rounds, self.tokens, events)
        return 0
