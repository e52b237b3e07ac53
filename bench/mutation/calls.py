"""A pytest plugin that notes which functions of settle each test calls, and what the test costs.

    CALLS=FILE python -m pytest -p mutation.calls …

Each line of FILE is JSON: [test, phase, seconds of CPU, functions], a function as "settle/train/loop.py train".
"""

import json
import os
import resource
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

import pytest

ROOT = str(Path(__file__).parents[2]) + os.sep
_called: set[str] = set()
_names: dict[CodeType, str | None] = {}


def _trace(frame: FrameType, event: str, argument: object) -> None:
    code = frame.f_code
    if code not in _names:
        ours = code.co_filename.startswith(ROOT + "settle" + os.sep)
        path = code.co_filename.removeprefix(ROOT).replace(os.sep, "/")
        _names[code] = f"{path} {code.co_qualname.split('.<locals>')[0]}" if ours else None
    if name := _names[code]:
        _called.add(name)


def _cpu() -> float:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _noted(phase: str, item: pytest.Item) -> Iterator[None]:
    _called.clear()
    before = _cpu()
    sys.settrace(_trace)
    threading.settrace(_trace)
    try:
        return (yield)
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        with open(os.environ["CALLS"], "a", encoding="utf-8") as file:
            file.write(json.dumps([item.nodeid, phase, round(_cpu() - before, 3), sorted(_called)]) + "\n")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    return (yield from _noted("setup", item))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    return (yield from _noted("call", item))
