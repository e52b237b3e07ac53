"""trackio's database, in a folder: nothing is sent to a Space."""

import contextlib
import importlib
import os
import sys
from pathlib import Path

from settle.base.errors import UsageError
from settle.base.run import Run
from settle.jobs.exporters import Exporter, history


class Trackio(Exporter):
    """A folder for `TRACKIO_DIR=FOLDER trackio show --project settle`."""

    def write(self, run: Run, folder: Path) -> Path:
        os.environ["TRACKIO_DIR"] = str(folder.absolute())  # it reads this when it is imported
        try:
            trackio = importlib.import_module("trackio")
        except ModuleNotFoundError as e:
            raise UsageError(f"this needs {e.name}", "pip install trackio") from None
        with contextlib.redirect_stdout(sys.stderr):  # it talks there; stdout is for what settle answers
            with contextlib.suppress(ValueError):  # the folder has no export yet
                for other in [other for other in trackio.Api().runs("settle") if other.name == run.name]:
                    other.delete()  # of an export before this one
            trackio.init("settle", name=run.name, embed=False, auto_log_gpu=False, auto_log_cpu=False)
            for _, step, figures, _ in history(run):
                trackio.log(figures, step=step)
            trackio.finish()
        return folder
