"""How much of a model is read from the disk again for each token, and how long that takes."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from settle.doctor.trial import Item, Side
from settle.infer.child_process import Child, Load
from settle.machine import read_from_disk

WRITTEN = 12  # tokens of an answer
PRESSURE = Path("/proc/pressure/memory")


class Pace(NamedTuple):
    """Of one token: seconds, and bytes that came from the disk."""

    seconds: float
    read: float


@contextlib.contextmanager
def running(load: Load) -> Iterator[Child]:
    """The model in llama.cpp while it lasts. Raises EngineError."""
    child = Child(load)
    try:
        child.start()
        yield child
    finally:
        child.close()


def pace(child: Child, prompt: str, tokens: int = WRITTEN) -> Pace:
    """Of a short answer. Raises EngineError."""
    before = read_from_disk(child.pid)
    body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    timings = child.post("/completion", body)["timings"]
    written = max(1, int(timings["predicted_n"]))
    read = read_from_disk(child.pid) - before
    # the prompt is read as a whole, with the weights once, as for a token
    return Pace(float(timings["predicted_ms"]) / 1e3 / written, read / (written + 1))


def memory_pressure() -> float | None:
    """The share of the last ten seconds in which something waited for memory; None where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return float(PRESSURE.read_text().split("avg10=")[1].split()[0]) / 100
    return None


class TokenTime(Side):
    """Seconds for a token, within the memory that the load says. Each time it is opened it loads the model."""

    def __init__(self, name: str, load: Load) -> None:
        self.name, self.num_bytes, self._load = name, load.path.stat().st_size, load
        self._child: Child | None = None

    def open(self) -> None:
        self._child = Child(self._load)
        self._child.start()
        pace(self._child, "Once", 1)

    def measure(self, item: Item) -> float:
        assert self._child is not None
        return pace(self._child, str(item)).seconds

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close()
