"""Measurements of this machine are made once: a small file for each machine that says what it measured.

The key is everything that can change the answer: the processor, the cores we may use, the threads torch uses,
the memory, the device and torch's version. Another key is another file, so nothing is ever stale by it.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from settle.base.files import home, parse_json, write_json
from settle.machine.cores import cores, processor_name
from settle.machine.memory import memory

T = TypeVar("T")


class Measurement(TypedDict):
    """busy: whether other programs kept the machine busy meanwhile."""

    value: Any
    busy: bool


def key(device: str, threads: int) -> dict[str, object]:
    """Return what the measurements depend on."""
    return {
        "processor": processor_name(),
        "cores": cores().usable,
        "threads": threads,
        "memory_gib": round(memory().total / 2**30),
        "device": device,
        "torch": version("torch"),
    }


def path_of(key: Mapping[str, object]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return home() / "machine" / f"{digest[:16]}.json"


def remembered(key: Mapping[str, object], name: str, measure: Callable[[], T]) -> T:
    """Return the value measured before under `name`, or measure it now and keep it.

    What was measured while other programs kept the machine busy is measured again once they do not.
    """
    known = _read(path_of(key), key).get(name)
    if known is not None and (not known["busy"] or others_are_busy()):
        cached: T = known["value"]
        return cached
    busy = others_are_busy()
    value = measure()
    note(key, name, value, busy or others_are_busy())
    return value


def note(key: Mapping[str, object], name: str, value: object, busy: bool = False) -> None:
    """Keep a value under `name`. busy: whether other programs kept the machine busy."""
    path = path_of(key)
    measured = _read(path, key)  # another process may have added to it meanwhile
    measured[name] = {"value": value, "busy": busy}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": key, "measured": measured})
    except OSError:
        pass  # a home that cannot be written costs a second of measuring each time, nothing else


def recalled(key: Mapping[str, object], name: str) -> Any:
    """Return the value measured before under `name`, or None; measure nothing."""
    known = _read(path_of(key), key).get(name)
    return known and known["value"]


def recalled_quiet(key: Mapping[str, object], name: str) -> Any:
    """Return what `recalled` does, or None where other programs kept the machine busy meanwhile."""
    known = _read(path_of(key), key).get(name)
    return known["value"] if known and not known["busy"] else None


def _read(path: Path, key: Mapping[str, object]) -> dict[str, Measurement]:
    """Empty when the file is missing or was damaged."""
    try:
        known = parse_json(path.read_text(encoding="utf-8"))
        measured: dict[str, Measurement] = known["measured"]
        if known["key"] == key and all({"value", "busy"} <= m.keys() for m in measured.values()):
            return measured
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {}


def others_are_busy() -> bool:
    """Whether other programs take more than a quarter of the processor, over a twentieth of a second."""
    import psutil

    process = psutil.Process()

    def spent() -> tuple[float, float]:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        return sum(times) - idle - sum(process.cpu_times()[:2]), time.monotonic()

    before, since = spent()
    time.sleep(0.05)
    after, now = spent()
    return after - before > 0.25 * (now - since) * (psutil.cpu_count() or 1)
