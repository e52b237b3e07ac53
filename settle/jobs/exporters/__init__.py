"""A run's events in the form of another program: its history, and one file an exporter."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from settle.base.event_log import Events, read_events
from settle.base.events import Eval, Listing, ResultReady, Step, Usage
from settle.base.registry import Part
from settle.base.run import Run

HISTORY = Path("history")  # folder that a history is exported to if none is given
ORDER = ("step", "usage", "eval")  # of the events of one step


class Exporter(Part):
    """The contract of an exporter."""

    def write(self, run: Run, folder: Path) -> Path:
        """Write the run's history below `folder`, and return where it lies; nothing leaves this machine.

        Raises UsageError when the program's library is missing.
        """
        raise NotImplementedError


def export_history(names: Sequence[str], exporter: Exporter, folder: Path, events: Events) -> None:
    """Export each run. Raises UsageError."""
    places = [str(exporter.write(Run.find(name), folder)) for name in names]
    events.emit(Listing(columns=("run", "history"), rows=list(zip(names, places, strict=True))))
    events.emit(ResultReady(result={"histories": places}))


class Moment(NamedTuple):
    """Figures by name at one step. time: epoch seconds; kind: step, usage or eval."""

    time: float
    step: int
    figures: dict[str, float]
    kind: str


def history(run: Run) -> Iterator[Moment]:
    """Return every step, sample of memory and power, and evaluation that the run kept, in the order of the steps.

    What the run went back over, after a stop or a step that went wrong, is left out.
    """
    kept: list[Moment] = []
    for event in read_events(run.events):
        match event:
            case Step():
                names = ("loss", "lr", "grad_norm", "tokens_per_second")
                figures = {f"train/{name}": getattr(event, name) for name in names}
            case Usage():
                watts = math.nan if event.watts is None else event.watts
                figures = {"usage/memory_gb": event.memory / 1e9, "usage/watts": watts}
            case Eval(whole=False):
                bits = math.nan if event.bits_per_byte is None else event.bits_per_byte
                figures = {"eval/loss": event.loss, "eval/stderr": event.stderr, "eval/bits_per_byte": bits}
            case _:
                continue
        while kept and _place(kept[-1]) >= (event.step, ORDER.index(event.kind)):
            kept.pop()
        finite = {name: value for name, value in figures.items() if math.isfinite(value)}
        figures = {"tokens": float(event.tokens), **finite}
        kept.append(Moment(event.time, event.step, figures, event.kind))
    yield from kept


def _place(moment: Moment) -> tuple[int, int]:
    return moment.step, ORDER.index(moment.kind)
