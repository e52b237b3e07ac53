"""settle runs: the runs there are, and what is known of one."""

from typing import ClassVar

from pydantic import Field

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.run import Run
from settle.commands import Command
from settle.jobs.run_reports import list_runs, show_ledger, show_run
from settle.jobs.seeds.seeds import compare_recipes
from settle.library.deletion import prune_runs, remove_runs

ACTIONS = ("list", "show", "remove", "prune", "compare")


class Runs(Command):
    """List the runs, newest first, with their sizes.

    `settle runs show NAME` shows one of them. `settle runs prune` deletes the checkpoints of finished runs, which
    nothing needs any more, and keeps their models; `settle runs remove NAME ...` deletes runs with all they made.
    `settle runs compare NAME NAME` compares two recipes that were run with `--seeds`, by the noise of their seeds.
    """

    is_watched: ClassVar[bool] = False
    positional: ClassVar[tuple[str, ...]] = ("action", "names")

    action: str = Field("list", description="list, show, compare, prune or remove")
    names: list[str] = Field(default_factory=list, description="the runs to show, to compare, to prune or to remove")
    ledger: bool = Field(False, description="compare the forecasts of every finished run with the actual figures")
    yes: bool = Field(False, description="delete without asking")

    def run(self, events: Events) -> int:
        if self.action not in ACTIONS:
            known = self.action in {run.name for run in Run.all()}
            fix = f"`settle runs show {self.action}`" if known else "list, show, compare, prune or remove"
            raise UsageError(f"there is no `settle runs {self.action}`", fix)
        if self.action in ("show", "remove") and not self.names:
            raise UsageError(f"no run is named to {self.action}", f"`settle runs {self.action} NAME`")
        if self.action == "show" and len(self.names) > 1:
            raise UsageError("one run is shown at a time", f"`settle runs show {self.names[0]}`")
        if self.ledger:
            show_ledger(self.names[:1], events)
        elif self.action == "show":
            show_run(self.names[0], events)
        elif self.action == "compare":
            compare_recipes(self.names, events)
        elif self.action == "prune":
            prune_runs(self.names, self.yes, events)
        elif self.action == "remove":
            remove_runs(self.names, self.yes, events)
        else:
            list_runs(events)
        return 0
