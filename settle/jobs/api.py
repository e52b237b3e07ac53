"""The Python API: `import settle; settle.train("~/notes")`. `settle` itself loads this only when it is used."""

from typing import TYPE_CHECKING

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.settings import resolve
from settle.jobs.finished_run import FinishedRun, run_job
from settle.jobs.index_settings import IndexSettings

if TYPE_CHECKING:
    from settle.retrieve.answer.askable import AskableCollection


def train(*inputs: str, **settings: object) -> FinishedRun:
    """Train a model from text, as `settle train` does: the same settings as keywords, groups as dicts.

    Returns the finished run: `.verdict`, `.result`, `.path`, `.generate(prompt)`. Raises SettleError.
    """
    return run_job("train", {"inputs": list(inputs), **settings})


def tune(model: str, *inputs: str, **settings: object) -> FinishedRun:
    """Fine-tune a model on your own examples, as `settle tune` does; settings and result as of `train`."""
    return run_job("tune", {"model": model, "inputs": list(inputs), **settings})


def distill(teacher: str, *inputs: str, **settings: object) -> FinishedRun:
    """Distil a large model into a smaller one, as `settle distill` does; settings and result as of `train`."""
    return run_job("distill", {"teacher": teacher, "inputs": list(inputs), **settings})


def shrink(model: str, *inputs: str, **settings: object) -> FinishedRun:
    """Make a model smaller within a budget, as `settle shrink` does: `settle.shrink("notes", to="400MB")`."""
    return run_job("shrink", {"model": model, "inputs": list(inputs), **settings})


def index(path: str, *more: str, **settings: object) -> "AskableCollection":
    """Index folders of documents, as `settle index` does, and open the collection, which answers questions:
    `settle.index("~/docs").ask("How do I rotate the key?")`. Raises SettleError.
    """
    from settle.jobs.index import index as run_index  # needs the extra `rag`
    from settle.retrieve.answer.askable import AskableCollection

    asked = resolve(IndexSettings, [("asked", {"paths": [path, *more], **settings})]).value
    name = run_index(asked, Events())
    if name is None:
        raise UsageError("nothing was indexed", "leave delete=True out")
    return AskableCollection(name)


def open_run(name: str) -> FinishedRun:
    """The finished run of that name. Raises UsageError when there is none."""
    return FinishedRun.find(name)
