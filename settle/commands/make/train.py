"""settle train: from text to a settled model that answers."""

from typing import ClassVar

from settle.base.event_log import Events
from settle.commands import Command
from settle.jobs.settings import TrainSettings, TuneSettings


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

    def run(self, events: Events) -> int:
        return start("train", self, events)


def start(job: str, settings: TrainSettings | TuneSettings, events: Events) -> int:
    """A new run of a job, or several where `--seeds` asks for them; the exit code."""
    from settle.jobs.ranks.start import start as start_run

    return start_run(job, settings, events)
