"""A clock for one module. That of all would stop the servers which other tests keep running in this process."""

import time
from types import ModuleType, SimpleNamespace

import pytest


def set_time(monkeypatch: pytest.MonkeyPatch, module: ModuleType, **functions: object) -> None:
    """The module's `time` has these functions, and else its own."""
    monkeypatch.setattr(module, "time", SimpleNamespace(**{**vars(time), **functions}))
