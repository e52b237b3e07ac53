"""Ranks for tests: forked processes that meet in a file, each a real member of a process group."""

import importlib
import multiprocessing
import os
import pickle
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.distributed import FileStore

from settle.train.world import single
from settle.train.world.process_group import ProcessGroup, Pulse

PATIENCE, LAST_WORD = 120.0, 2.0  # seconds after which a rank counts as hung; the same once another one has failed


def on_ranks(
    size: int, folder: Path, work: Callable[[Any], Any], limit: float = 30.0, host_size: int | None = None
) -> list[Any]:
    """What `work` returns at each rank, given its world; a rank that ends otherwise gives its exit code. host_size:
    ranks that count as those of a host."""
    folder.mkdir()
    importlib.import_module("torch.distributed.fsdp")  # takes seconds: here, and not in every rank
    context = multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads: a rank uses none of ours
        ranks = [
            context.Process(target=_rank, args=(rank, size, folder, work, limit, host_size)) for rank in range(size)
        ]
        for process in ranks:
            process.start()
    until = time.monotonic() + PATIENCE
    while any(process.is_alive() for process in ranks) and time.monotonic() < until:
        if any(process.exitcode for process in ranks):
            until = min(until, time.monotonic() + LAST_WORD)
        time.sleep(0.02)
    for process in ranks:
        process.kill()
        process.join()
    files = [folder / f"{rank}.made" for rank in range(size)]
    return [pickle.loads(f.read_bytes()) if f.exists() else p.exitcode for f, p in zip(files, ranks, strict=True)]


def in_parts(
    parts: Sequence[tuple[int, int | None]], folder: Path, train: Callable[[Any, int | None], list[float]]
) -> list[float]:
    """What the last part returns, at rank 0, of a run that is trained in parts: by how many ranks, and until which
    step."""
    losses: list[float] = []
    for number, (size, stop) in enumerate(parts):
        if size == 1:
            losses = train(single(), stop)
        else:
            losses = on_ranks(size, folder / f"part{number}", lambda world, stop=stop: train(world, stop))[0]
    return losses


def _rank(rank: int, size: int, folder: Path, work: Callable[[Any], Any], limit: float, host_size: int | None) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = FileStore(str(folder / "store"), size)
    pulse = Pulse(store, rank, size, lambda text: (folder / f"{rank}.fault").write_text(text), limit)
    world = ProcessGroup(store, rank, size, "cpu", pulse, host_size)
    made = work(world)
    part = folder / f"{rank}.part"
    part.write_bytes(pickle.dumps(made))
    part.rename(folder / f"{rank}.made")
    world.agree(0.0)  # nobody leaves before all are done
    os._exit(0)
