"""settle runs: the runs there are, and what is known of one."""

from typing import ClassVar

from pydantic import Field

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.run import Run
from settle.commands import Command
from settle.jobs.run_reports import list_runs, remove_run, show_ledger, show_run


class Runs(Command):
    """List the runs, newest first; `settle runs show NAME` shows one of them, `settle runs remove NAME` deletes it."""

    positional: ClassVar[tuple[str, ...]] = ("action", "name")

    action: str = Field("list", description="list, show or remove")
    name: str = Field("", description="the run to show or to remove")
    ledger: bool = Field(False, description="compare the forecasts of every finished run with the actual figures")

    def run(self, events: Events) -> int:
        if self.action not in ("list", "show", "remove"):
            known = self.action in {run.name for run in Run.all()}
            fix = f"`settle runs show {self.action}`" if known else "list, show or remove"
            raise UsageError(f"there is no `settle runs {self.action}`", fix)
        if self.action != "list" and not self.name:
            raise UsageError(f"no run is named to {self.action}", f"`settle runs {self.action} NAME`")
        if self.ledger:
            show_ledger(self.name, events)
        elif self.action == "show":
            show_run(self.name, events)
        elif self.action == "remove":
            remove_run(self.name, events)
        else:
            list_runs(events)
        return 0
