"""A run's events in the form of another program: one file an exporter, each a face of the same events."""

from collections.abc import Sequence
from pathlib import Path

from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady
from settle.base.registry import Part
from settle.base.run import Run


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
