"""Measurements of this machine are made once: a small file for each machine that says what it measured.

The key is everything that can change the answer: the processor, the cores we may use, the threads torch uses,
the memory, the device and torch's version. Another key is another file, so nothing is ever stale by it.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from settle.base.files import home, parse_json, write_json
from settle.machine.cores import OthersShare, cores, processor_name
from settle.machine.memory import memory

T = TypeVar("T")
SHORTEST, MOST_OTHERS = 0.05, 0.25  # seconds over which others are watched; share of the processor that they may take
Key = dict[str, str | int]  # what measurements depend on


class Measurement(TypedDict):
    """busy: whether other programs kept the machine busy meanwhile."""

    value: Any
    busy: bool


def key(device: str, threads: int) -> Key:
    """Return what the measurements depend on."""
    return {
        "processor": processor_name(),
        "cores": cores().usable,
        "threads": threads,
        "memory_gib": round(memory().total / 2**30),
        "device": device,
        "torch": version("torch"),
    }


def path_of(key: Key) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return home() / "machine" / f"{digest[:16]}.json"


def remembered(key: Key, name: str, measure: Callable[[], T]) -> T:
    """Return the value measured before under `name`, or measure it now and keep it.

    What was measured while other programs kept the machine busy is measured again once they do not.
    """
    known = _read(path_of(key), key).get(name)
    if known is not None and (not known["busy"] or others_are_busy()):
        cached: T = known["value"]
        return cached
    others, began = OthersShare(), time.monotonic()
    value = measure()
    note(key, name, value, others_are_busy(others, time.monotonic() - began))
    return value


def note(key: Key, name: str, value: object, busy: bool = False) -> None:
    """Keep a value under `name`. busy: whether other programs kept the machine busy."""
    path = path_of(key)
    measured = _read(path, key)  # another process may have added to it meanwhile
    measured[name] = {"value": value, "busy": busy}
    with contextlib.suppress(OSError):  # a home that cannot be written costs a second of measuring each time
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": key, "measured": measured})


def recalled(key: Key, name: str, is_quiet: bool = False) -> Any:
    """Return the value measured before under `name`, or None; measure nothing.

    is_quiet: only a value that was measured while no other program kept the machine busy.
    """
    known = _read(path_of(key), key).get(name)
    return known["value"] if known and not (is_quiet and known["busy"]) else None


def _read(path: Path, key: Key) -> dict[str, Measurement]:
    """Return nothing when the file is missing or was damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        known = parse_json(path.read_text(encoding="utf-8"))
        measured: dict[str, Measurement] = known["measured"]
        if known["key"] == key and all({"value", "busy"} <= m.keys() for m in measured.values()):
            return measured
    return {}


def others_are_busy(others: OthersShare | None = None, watched: float = 0.0) -> bool:
    """Return whether other programs take more than a quarter of the processor, over a twentieth of a second at least.

    watched: seconds since `others` was made; the kernel counts in hundredths.
    """
    others = others or OthersShare()
    time.sleep(max(0.0, SHORTEST - watched))
    return (others.read() or 0.0) > MOST_OTHERS
