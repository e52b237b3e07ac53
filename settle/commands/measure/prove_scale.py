"""settle prove-scale: any number of processes trains the same model, shown on your own text."""

from typing import ClassVar, Literal

from pydantic import Field

from settle.base.event_log import Events
from settle.commands import Command
from settle.jobs.settings import TrainSettings
from settle.machine.threads import ThreadSettings


class ProveScale(ThreadSettings, Command):
    """Prove that any number of ranks trains the same model: the same rows in the same order, and the same losses.

    Short runs of one plan on this machine, on each number of ranks and on a number that changes on the way. The exit
    code is 1 where a loss is further than 1e-5 from that of one rank, or the order of rows is another one.
    """

    positional: ClassVar[tuple[str, ...]] = ("inputs",)

    inputs: list[str] = Field([], description="files, folders, - or stdlib")
    ranks: str = Field("1,2,3,4", description="numbers of ranks, with commas between them")
    steps: int = Field(100, ge=5, description="optimizer steps of each run")
    size: str | None = Field("100k", description="number of parameters, such as 2M")
    batch_tokens: int | None = Field(None, ge=64, description="tokens per optimizer step")
    sharding: Literal["none", "full"] = Field(
        "none", description="each rank holds the whole model (none), or its rows of the weights alone (full)"
    )
    seed: int = Field(0, ge=0, description="seed of the data order and the initial weights")

    def run(self, events: Events) -> int:
        from settle.jobs.prove_scale.prove_scale import parse_ranks, prove_scale

        settings = TrainSettings(
            inputs=self.inputs, steps=self.steps, size=self.size, batch_tokens=self.batch_tokens, seed=self.seed,
            dtype="float32", device="cpu", threads=self.threads, sharding=self.sharding,
        )  # fmt: skip
        return prove_scale(settings, parse_ranks(self.ranks), events)
