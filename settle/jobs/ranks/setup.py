"""What must be the same at every rank: code, libraries, what was asked, the plan, the data and the model."""

import functools
import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch.distributed.distributed_c10d import Store

from settle.base.event_log import Events
from settle.base.events import Say
from settle.train.live_run import LiveRun

JOIN_SECONDS = 300.0  # that the ranks wait for each other at the start
SAY_SECONDS = 10.0  # after which rank 0 says that it waits
PACKAGES = ("torch", "numpy")
SAMPLED = 1 << 20  # tokens of the data that are compared, evenly spread
NAMES = {
    "code": "settle's code", "recipe": "what was asked", "plan": "plan.json", "data": "the tokens",
    "model": "the model", "python": "Python", "of_host": "the number of ranks on the host",
}  # fmt: skip


def setup_of(live: LiveRun, plan: bytes, asked: Mapping[str, object]) -> dict[str, object]:
    """Return what this rank has, each as a version or a hash. plan: as plan.json has it, or will have it."""
    trained = [[name, list(p.shape), str(p.dtype)] for name, p in live.model.trainable().items()]
    return {
        "host": platform.node(),
        "code": _code(),
        "python": ".".join(platform.python_version_tuple()[:2]),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
        "recipe": asked,
        "plan": _hash(plan),
        "data": _tokens(live),
        "model": _hash(json.dumps(trained).encode()),
    }


def compare(store: Store, key: str, size: int, own: Mapping[str, object], events: Events) -> list[str]:
    """Return what is wrong with one of the `size` ranks and how to fix it; empty when all have the same.

    Called at rank 0. key: below which each rank states what it has.
    """
    began, has_said = time.monotonic(), False
    for rank in range(1, size):
        while not store.check([f"{key}/{rank}"]):
            waited = time.monotonic() - began
            if waited > JOIN_SECONDS:
                return [f"rank {rank} did not come within {JOIN_SECONDS:.0f} s", "see its host"]
            if waited > SAY_SECONDS and not has_said:
                has_said = True
                text = f"rank {rank} is not ready: the others wait for it, {JOIN_SECONDS:.0f} s at most"
                events.emit(Say(text=text))
            time.sleep(0.02)
        wrong = differences(rank, own, json.loads(store.get(f"{key}/{rank}")))
        if wrong:
            return wrong
    return []


def differences(rank: int, own: Mapping[str, object], theirs: Mapping[str, object]) -> list[str]:
    """Return what is wrong with a rank, and how to fix it; empty when it is as rank 0."""
    error = theirs.get("error")
    if isinstance(error, list):
        return [f"rank {rank}: {error[0]}", str(error[1])]
    for key, value in own.items():
        other = theirs.get(key)
        if key != "host" and other != value:
            name = NAMES.get(key, key)
            where = f"rank {rank} on {theirs.get('host')}"
            if key == "recipe" and isinstance(value, dict) and isinstance(other, dict):
                changed = [k for k in {**value, **other} if value.get(k) != other.get(k)]
                detail = ", ".join(f"{k} is {other.get(k)!r}, rank 0 has {value.get(k)!r}" for k in sorted(changed))
                return [f"{where} was asked for something else: {detail}", "start every rank with the same command"]
            fix = "give every rank the same version and files"
            if key == "of_host":
                fix = "--sharding hybrid needs as many ranks on every host: start torchrun with the same numbers"
            return [f"{name} of {where} differs: {str(other)[:16]}, rank 0 has {str(value)[:16]}", fix]
    return []


@functools.cache
def _code() -> str:
    """Return a hash of every file of the package."""
    top = Path(__file__).parents[2]
    files = sorted(top.rglob("*.py"))
    return _hash(b"".join(str(path.relative_to(top)).encode() + path.read_bytes() for path in files))


def _tokens(live: LiveRun) -> str:
    """Return a hash of the number of tokens and of some of them, in what trains and in what is evaluated."""
    stores = (live.corpus.train, live.corpus.selection)
    parts = []
    for store in stores:
        tokens = store.tokens
        parts.append(str(len(tokens)).encode())
        parts.append(np.asarray(tokens[:: max(1, len(tokens) // SAMPLED)]).tobytes())
    return _hash(b"".join(parts))


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
