"""settle: train a model until it has settled, on your own machine, and know that it has.

import settle
run = settle.train("~/notes", time="30m")
run.verdict
run.generate("Once upon a time")
"""

import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from settle.audit import switch_off

__all__ = [
    "SettleError",
    "train",
    "tune",
    "distill",
    "shrink",
    "index",
    "chat",
    "generate",
    "serve",
    "pull",
    "fit",
    "pick",
    "choose",
    "decide",
    "doctor",
    "eval",
    "open_run",
    "resume",
]

switch_off()  # nothing phones home
# Threads that wait for each other spin a moment, then sleep. The default spins so long that whatever else runs on the
# machine makes training some times slower; this costs 5 % of small operations on an idle one (both measured on two
# cores). GNU OpenMP reads it when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
# The library of matrix products compiles a kernel for every number of rows and keeps 1,024 of them. Packed rows make
# ever new numbers, and what was kept grew by 20 MB with each step of a 135 M model. Read when torch loads.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # said, it does not warn when a process forks

from settle.base.errors import SettleError  # noqa: E402
from settle.base.version import __version__ as __version__  # noqa: E402

if TYPE_CHECKING:
    from settle.api import (
        chat,
        choose,
        decide,
        distill,
        doctor,
        eval,
        fit,
        generate,
        index,
        open_run,
        pick,
        pull,
        resume,
        serve,
        shrink,
        train,
        tune,
    )


def __getattr__(name: str) -> object:
    """Load the functions of the Python API when one is first used: they load torch."""
    if name in __all__:
        return getattr(importlib.import_module("settle.api"), name)
    raise AttributeError(f"module 'settle' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


class _Settle(ModuleType):
    """`settle.train` is the function, also after the room of the same name has been imported.

    Python binds a submodule as an attribute of its package; the room stays reachable by `from settle.train import …`.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Settle
