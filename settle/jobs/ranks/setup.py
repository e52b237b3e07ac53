"""What must be the same at every rank: code, libraries, what was asked, the plan, the data and the model."""

import functools
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import settle
from settle.train.live_run import LiveRun

PACKAGES = ("torch", "numpy")
SAMPLED = 1 << 20  # tokens of the data that are compared, evenly spread
NAMES = {
    "code": "settle's code", "recipe": "what was asked", "plan": "plan.json", "data": "the tokens",
    "model": "the model", "python": "Python", "of_host": "the number of ranks on the host",
}  # fmt: skip


def setup_of(live: LiveRun, plan: bytes, asked: Mapping[str, object]) -> dict[str, object]:
    """What this rank has, each as a version or a hash. plan: as plan.json has it, or will have it."""
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


def differences(rank: int, own: Mapping[str, object], theirs: Mapping[str, object]) -> list[str]:
    """What is wrong with a rank, and how to fix it; empty when it is as rank 0."""
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
    """A hash of every file of the package."""
    top = Path(settle.__file__).parent
    files = sorted(top.rglob("*.py"))
    return _hash(b"".join(str(path.relative_to(top)).encode() + path.read_bytes() for path in files))


def _tokens(live: LiveRun) -> str:
    """A hash of the number of tokens and of some of them, in what trains and in what is evaluated."""
    stores = (live.corpus.train, live.corpus.selection)
    parts = []
    for store in stores:
        tokens = store.tokens
        parts.append(str(len(tokens)).encode())
        parts.append(np.asarray(tokens[:: max(1, len(tokens) // SAMPLED)]).tobytes())
    return _hash(b"".join(parts))


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
