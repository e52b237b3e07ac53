"""settle train: from text to a settled model that answers."""

import gc
from typing import ClassVar

from pydantic import Field

from settle.base.event_log import Events
from settle.base.run.launcher import launched
from settle.commands import Command
from settle.jobs.settings import TrainSettings
from settle.plan.loss_law import counted


class Train(TrainSettings, Command):
    """Train a model from your own text until it has settled.

    INPUTS are files or folders of text (Markdown, plain text, HTML, code, notebooks, JSON Lines, CSV, Parquet; with the
    extra `rag` also PDF, office documents, books and mail; compressed or not), `-` for stdin, or `stdlib` for Python's
    own standard library. `--dry` shows the plan and the forecast, and stops.
    """

    positional: ClassVar[tuple[str, ...]] = ("inputs",)
    begins_work: ClassVar[bool] = True
    essential: ClassVar[tuple[str, ...]] = (
        "name", "time", "size", "steps", "tokens", "tolerance", "dry", "recipe", "seed", "seeds", "device", "dtype",
        "threads",
    )  # fmt: skip

    prove_scale: str | None = Field(None, description="prove that so many ranks train the same, keep no model: 1,2,3,4")

    def run(self, events: Events) -> int:
        if self.prove_scale is not None:
            from settle.jobs.ranks.prove_scale import prove_scale

            return prove_scale(self, self.prove_scale, events)
        if launched() is None:
            from settle.data.prepare import begin_to_prepare  # loads more than --help needs

            whole = self.with_recipe().value
            begin_to_prepare(whole.inputs, whole.data, counted)
        collects = gc.isenabled()
        gc.disable()  # modules stay: looking through them again and again takes a tenth of the time that they load
        from settle.jobs.ranks.start import start_run

        if collects:
            gc.enable()
        return start_run("train", self, events)
