"""What a file asks of this machine in llama.cpp: size, time to load, memory, and tokens a second."""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from settle.base.files import JsonObject
from settle.infer.engine import Engine

PROMPT, GENERATED, ROUNDS = 256, 64, 3


@dataclass(frozen=True)
class Measured:
    """A median over the rounds, and the least and most of them."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Measured":
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Footprint:
    """What a file takes here.

    num_bytes: size of the file. load_seconds: until it answers. peak_bytes: peak of the child's memory, weights and
    context included. prompt_speed: tokens read a second; speed: tokens generated a second, one by one. context: tokens
    that there was room for.
    """

    num_bytes: int
    load_seconds: Measured
    peak_bytes: int
    prompt_speed: Measured
    speed: Measured
    context: int
    rounds: int

    def to_json(self) -> JsonObject:
        return asdict(self)


def footprints(
    paths: Sequence[Path],
    rounds: int = ROUNDS,
    threads: int | None = None,
    prompt: int = PROMPT,
    generated: int = GENERATED,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[Footprint]:
    """Measure the footprint of each file.

    They are measured in turns, every file once a round, so that a machine that is busy for a while slows all of them
    down alike. on_progress: called with 1 after every file and round. Raises what `Engine` does.
    """
    measured: list[list[_Round]] = [[] for _ in paths]
    for _ in range(rounds):
        for number, path in enumerate(paths):
            measured[number].append(_round(Path(path), threads, prompt, generated))
            on_progress(1)
    return [
        Footprint(
            num_bytes=Path(path).stat().st_size,
            load_seconds=Measured.of([one.load_seconds for one in of_file]),
            peak_bytes=max(one.peak_bytes for one in of_file),
            prompt_speed=Measured.of([one.prompt_speed for one in of_file]),
            speed=Measured.of([one.speed for one in of_file]),
            context=of_file[0].context,
            rounds=rounds,
        )
        for path, of_file in zip(paths, measured, strict=True)
    ]


@dataclass(frozen=True)
class _Round:
    load_seconds: float
    peak_bytes: int
    prompt_speed: float
    speed: float
    context: int


def _round(path: Path, threads: int | None, prompt: int, generated: int) -> _Round:
    start = time.perf_counter()
    with Engine(path, context=prompt + generated, threads=threads) as engine:
        load_seconds = time.perf_counter() - start
        room = engine.context
        generated = max(2, min(generated, room // 4))
        # any ids will do: what is computed is the same
        ids = [(7919 * i) % engine.num_vocab for i in range(max(1, min(prompt, room - generated)))]
        engine.timings(ids[:8], 2)  # the first look at a mapped file reads it
        timings = engine.timings(ids, generated)
        peak = peak_bytes(engine.pid or 0)
    return _Round(
        load_seconds=load_seconds,
        peak_bytes=peak,
        prompt_speed=timings["prompt_n"] / timings["prompt_ms"] * 1e3,
        # the first token comes out of reading the prompt
        speed=(timings["predicted_n"] - 1) / timings["predicted_ms"] * 1e3,
        context=room,
    )


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process ever had; of now where the system does not remember that."""
    if sys.platform == "linux":
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    info = psutil.Process(pid).memory_info()
    return int(getattr(info, "peak_wset", info.rss))
