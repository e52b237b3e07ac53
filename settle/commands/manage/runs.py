"""The runs there are, what is known of one, and what left this machine."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from settle.audit.ledger import list_ledgers
from settle.audit.ledger import show_ledger as show_connections
from settle.base.choice import Choice, choice
from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.run import Run
from settle.commands import Command
from settle.evaluate.report.run_page import share_run
from settle.jobs.exporters import HISTORY, Exporter, export_history
from settle.jobs.rename import rename_run
from settle.jobs.run_reports import list_runs, show_ledger, show_run
from settle.jobs.seeds import compare_recipes
from settle.jobs.settings import LabSettings
from settle.library.deletion import prune_runs, remove_runs
from settle.library.update import show_providers

ACTIONS = ("list", "show", "compare", "export", "share", "audit", "rename", "prune", "remove")


class Runs(LabSettings, Command):
    """List, show, audit, rename and remove runs; try changes to a recipe.

    `settle runs show NAME` shows one, `settle runs share NAME` writes it as one HTML file. `settle runs prune` deletes
    the checkpoints of finished runs and keeps their models; `settle runs remove NAME ...` deletes runs with all they
    made. `settle runs export NAME --to tensorboard` writes a run's history for another program, `--to technical-file`
    what documents it.

    `settle runs compare base.toml optimizer.lr=0.01` tries a change to a recipe by pairs of runs: kept (exit code 0),
    discarded (3) or undecided (4); of all that are tried, one without a gain is kept in 5 % of labs at most. Without a
    change it lists what was tried. `settle runs compare NAME NAME` compares recipes that were run with `--seeds`.

    `settle runs audit NAME` shows every connection of a run, or of the newest command of that name such as `serve`.
    Without NAME it lists the ledgers; `settle runs audit providers` is about what clouds log, keep and train on.
    """

    is_watched: ClassVar[bool] = False
    positional: ClassVar[tuple[str, ...]] = ("action", "names")

    action: str = Field("list", description="list, show, compare, export, share, audit, rename, prune or remove")
    names: list[str] = Field(default_factory=list, description="the runs, a recipe and a change, a run and a new name")
    ledger: bool = Field(False, description="compare the forecasts of every finished run with the actual figures")
    to: Choice = choice("jobs/exporters", default="tensorboard", description="history or technical file to export")
    out: Path | None = Field(None, description="file to share, or folder of an exported history; here if not given")
    yes: bool = Field(False, description="delete without asking")

    def run(self, events: Events) -> int:
        if self.action not in ACTIONS:
            known = self.action in {run.name for run in Run.all()}
            fix = f"`settle runs show {self.action}`" if known else f"{', '.join(ACTIONS[:-1])} or {ACTIONS[-1]}"
            raise UsageError(f"there is no `settle runs {self.action}`", fix)
        if self.action in ("show", "export", "share", "remove") and not self.names:
            raise UsageError(f"no run is named to {self.action}", f"`settle runs {self.action} NAME`")
        if self.ledger:
            show_ledger(self.names[:1], events)
        elif self.action in ("show", "rename"):
            (show_run if self.action == "show" else rename_run)(self.names, events)
        elif self.action == "export":
            export_history(self.names, Exporter.make(str(self.to.name), self.to.settings), self.out or HISTORY, events)
        elif self.action == "share":
            share_run(self.names, self.out, events)
        elif self.action == "audit" and self.names:
            show_providers(events) if self.names == ["providers"] else show_connections(self.names[0], events)
        elif self.action == "compare" and self.names[:1] and self.names[0].endswith(".toml"):
            from settle.jobs.lab import try_change

            return try_change(self.names, self, events)
        elif self.action == "compare":
            return compare_recipes(self.names, events)
        elif self.action in ("prune", "remove"):
            (prune_runs if self.action == "prune" else remove_runs)(self.names, self.yes, events)
        else:
            (list_ledgers if self.action == "audit" else list_runs)(events)
        return 0
