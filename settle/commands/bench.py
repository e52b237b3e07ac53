"""Measure on this machine what settle claims of itself."""

import statistics
from typing import ClassVar, Literal

from pydantic import Field

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import Listing, Progress, ResultReady
from settle.commands import Command


class Bench(Command):
    """What the server adds to llama.cpp's own, on this machine: `settle bench serve MODEL`.

    Both are the same process, asked in turns: llama.cpp's port, and settle's in front of it.
    """

    positional: ClassVar[tuple[str, ...]] = ("what", "model")

    what: Literal["serve"] = Field(description="serve")
    model: str = Field(description="a run, a model of the store, or a .gguf file; it needs a chat template")
    streams: list[int] = Field(default_factory=lambda: [1, 8, 32], description="answers at the same time")
    rounds: int = Field(5, gt=0, description="of each side, in turns")
    tokens: int = Field(64, gt=1, description="of each answer")

    def run(self, events: Events) -> int:
        from settle.library.resolve import resolve_gguf

        try:
            from settle.server.bench.overhead import overhead
        except ModuleNotFoundError as e:
            raise UsageError(f"serving needs {e.name}", "pip install 'settle-lm[serve]'") from None
        model = resolve_gguf(self.model)
        if not self.streams or min(self.streams) < 1 or max(self.streams) > 256:
            raise UsageError("--streams must lie between 1 and 256", "--streams 1 --streams 8")
        rows, told = [], []
        for number, seen in enumerate(overhead(model.weights, self.streams, self.rounds, self.tokens), 1):
            ratio, added = statistics.median(seen.ratios), statistics.median(seen.added) * 1e3
            rows.append(
                [
                    seen.streams,
                    f"{seen.bare.rate:.0f}",
                    f"{seen.settle.rate:.0f}",
                    f"{ratio:.3f} ({min(seen.ratios):.3f}–{max(seen.ratios):.3f})",
                    f"{seen.bare.first * 1e3:.1f} ms",
                    f"{added:+.1f} ms",
                ]
            )
            told.append({"streams": seen.streams, "ratio": ratio, "ratios": seen.ratios, "added_ms": added})
            events.emit(Progress(what="streams measured", done=number, total=len(self.streams), unit="count"))
        columns = ("streams", "llama.cpp, tokens/s", "settle", "ratio", "first token", "settle adds")
        events.emit(Listing(title=f"{model.name}, medians of {self.rounds} rounds", columns=columns, rows=rows))
        events.emit(ResultReady(result={"model": model.name, "overhead": told}))
        return 0
