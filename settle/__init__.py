"""settle: train a model until it has settled, on your own machine, and know that it has.

import settle
run = settle.train("~/notes", time="30m")
run.verdict
run.generate("Once upon a time")
"""

import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["SettleError", "train", "tune", "distill", "shrink", "index", "open_run"]

# Nothing phones home: the switches of every dependency that has some, before any of them is imported.
for _switch in ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK"):
    os.environ.setdefault(_switch, "1")
# Threads that wait for each other spin a moment, then sleep. The default spins so long that whatever else runs on the
# machine makes training some times slower; this costs 5 % of small operations on an idle one (both measured on two
# cores). GNU OpenMP reads it when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
# The library of matrix products compiles a kernel for every number of rows and keeps 1,024 of them. Packed rows make
# ever new numbers, and what was kept grew by 20 MB with each step of a 135 M model. Read when torch loads.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # said, it does not warn when a process forks

from settle.base.errors import SettleError, UsageError  # noqa: E402
from settle.base.version import __version__ as __version__  # noqa: E402

if TYPE_CHECKING:
    from settle.jobs.finished_run import FinishedRun
    from settle.retrieve.answer.askable import AskableCollection


def train(*inputs: str, **settings: Any) -> "FinishedRun":
    """Train a model from text, as `settle train` does: the same settings as keywords, groups as dicts.

    Returns the finished run: `.verdict`, `.result`, `.path`, `.generate(prompt)`. Raises SettleError.
    """
    from settle.jobs.finished_run import run_job
    from settle.jobs.train import JOB

    return run_job(JOB, {"inputs": list(inputs), **settings})


def tune(model: str, *inputs: str, **settings: Any) -> "FinishedRun":
    """Fine-tune a model on your own examples, as `settle tune` does; settings and result as of `train`."""
    from settle.jobs.finished_run import run_job
    from settle.jobs.tune import JOB

    return run_job(JOB, {"model": model, "inputs": list(inputs), **settings})


def distill(teacher: str, *inputs: str, **settings: Any) -> "FinishedRun":
    """Distil a large model into a smaller one, as `settle distill` does; settings and result as of `train`."""
    from settle.jobs.distill import JOB
    from settle.jobs.finished_run import run_job

    return run_job(JOB, {"teacher": teacher, "inputs": list(inputs), **settings})


def shrink(model: str, *inputs: str, **settings: Any) -> "FinishedRun":
    """Make a model smaller within a budget, as `settle shrink` does: `settle.shrink("notes", to="400MB")`."""
    from settle.jobs.finished_run import run_job
    from settle.jobs.shrink import JOB

    return run_job(JOB, {"model": model, "inputs": list(inputs), **settings})


def index(path: str, *more: str, **settings: Any) -> "AskableCollection":
    """Index folders of documents, as `settle index` does, and open the collection, which answers questions:
    `settle.index("~/docs").ask("How do I rotate the key?")`. Raises SettleError.
    """
    from settle.base.event_log import Events
    from settle.base.settings import resolve
    from settle.jobs.index import index as run_index
    from settle.jobs.index_settings import IndexSettings
    from settle.retrieve.answer.askable import AskableCollection

    name = run_index(resolve(IndexSettings, [("asked", {"paths": [path, *more], **settings})]).value, Events())
    if name is None:
        raise UsageError("nothing was indexed", "leave delete=True out")
    return AskableCollection(name)


def open_run(name: str) -> "FinishedRun":
    """The finished run of that name. Raises UsageError when there is none."""
    from settle.jobs.finished_run import FinishedRun

    return FinishedRun.find(name)


class _Settle(ModuleType):
    """`settle.train` is the function, also after the room of the same name has been imported.

    Python binds a submodule as an attribute of its package; the room stays reachable by `from settle.train import …`.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Settle
