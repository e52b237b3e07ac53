"""Weights & Biases's offline run, in a folder; `wandb sync` would be what sends it."""

import importlib
import os
from pathlib import Path

from settle.base.errors import UsageError
from settle.base.run import Run
from settle.jobs.exporters import Exporter, history


class Wandb(Exporter):
    """A folder with a run of W&B's offline mode."""

    def write(self, run: Run, folder: Path) -> Path:
        os.environ |= {"WANDB_ERROR_REPORTING": "false", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
        try:
            wandb = importlib.import_module("wandb")
        except ModuleNotFoundError as e:
            raise UsageError(f"this needs {e.name}", "pip install wandb") from None
        folder.mkdir(parents=True, exist_ok=True)
        quiet = wandb.Settings(  # what else it would note is of this process and this machine, not of the run
            console="off", disable_git=True, disable_code=True, x_disable_stats=True, x_disable_meta=True,
            x_save_requirements=False,
        )  # fmt: skip
        about = {"id": run.path.name, "name": run.name, "project": "settle"}  # one id: synced again it is one run
        with wandb.init(**about, dir=str(folder), mode="offline", settings=quiet) as made:
            for _, step, figures, _ in history(run):
                made.log(figures, step=step)
        return folder / "wandb"
