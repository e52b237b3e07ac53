"""settle: train a model until it has settled, on your own machine, and know that it has.

import settle
run = settle.train("~/notes", time="30m")
run.verdict
run.generate("Once upon a time")
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["SettleError", "train", "open_run"]

from settle.base.errors import SettleError

if TYPE_CHECKING:
    from settle.commands.train import FinishedRun


def train(*inputs: str, **settings: Any) -> "FinishedRun":
    """Train a model from text, as `settle train` does: the same settings as keywords, groups as dicts.

    Returns the finished run: `.verdict`, `.result`, `.path`, `.generate(prompt)`. Raises SettleError.
    """
    from settle.commands.train import train_quietly

    return train_quietly(list(inputs), settings)


def open_run(name: str) -> "FinishedRun":
    """The finished run of that name. Raises UsageError when there is none."""
    from settle.commands.train import FinishedRun

    return FinishedRun.find(name)
