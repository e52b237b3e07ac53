"""A tiny trained model, its file, and an engine and helpers that watch a child end."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from settle.formats.gguf import export_gguf
from settle.infer.engine import Engine
from tests.trained import trained


@pytest.fixture(scope="session")
def tiny():
    """A tiny trained model: part, model, tokenizer, held_out, weights."""
    return trained()


@pytest.fixture(scope="session")
def file(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("engine") / "tiny.gguf"
    return export_gguf(tiny.part, tiny.weights, tiny.tokenizer, path, "f32")


@pytest.fixture(scope="session")
def engine(file):
    with Engine(file, threads=1) as engine:
        yield engine


@pytest.fixture
def lacking(tiny, tmp_path):
    """A file that is sound, and lacks a tensor."""
    weights = {n: t for n, t in tiny.weights.items() if "layers.1.mlp.up" not in n}

    class Fewer:
        def __getattr__(self, name):
            return getattr(tiny.part, name)

        def gguf_names(self):
            return {n: g for n, g in tiny.part.gguf_names().items() if n in weights}

    return export_gguf(Fewer(), weights, tiny.tokenizer, tmp_path / "x.gguf", "f32")


def gone(pid: int) -> bool:
    """The process has ended (its parent may not have collected it yet)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def ends_with_its_parent(module: str, name: str, file: Path) -> bool:
    """Whether a child ends after `kill -9` of the process that made it: its stdin ends."""
    code = (
        f"import sys, time; from {module} import {name}\n"
        f"e = {name}({str(file)!r}, threads=1); e.start(); print(e.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child = int(parent.stdout.readline())
    assert not gone(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while not gone(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    return gone(child)
