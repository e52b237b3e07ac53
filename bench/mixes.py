"""What it takes to ask llama.cpp for the types of its mixes, and how often they change from one llama.cpp to another.

    python bench/mixes.py                       # seconds to ask, for models of several shapes
    pip install --no-deps --target old llama-cpp-py-sync==0.10335
    python bench/mixes.py --other old           # and how many answers of that version are different

The models are headers: names, metadata and shapes as of real models, two rows in each matrix.
"""

import argparse
import os
import resource
import statistics
import tempfile
from pathlib import Path

from settle.base.errors import SettleError
from settle.formats.gguf import read_gguf
from settle.shrink.types import mixes
from settle.shrink.types.mixes import MIXES, mix_types
from tests.shrink.files import make_gguf

SHAPES = {
    "SmolLM2-135M": {"layers": 30, "width": 576, "inner": 1536, "tied": True, "heads": 9, "shared": 3},
    "Qwen2.5-3B": {
        "architecture": "qwen2", "layers": 36, "width": 2048, "inner": 11008, "tied": True, "heads": 16, "shared": 2,
    },
    "Llama-3-8B": {"layers": 32, "width": 4096, "inner": 14336, "heads": 32, "shared": 8},
    "Llama-3-70B": {"layers": 80, "width": 8192, "inner": 28672, "heads": 64, "shared": 8},
    "Gemma-3-270M": {
        "architecture": "gemma3", "layers": 18, "width": 640, "inner": 2048, "tied": True, "heads": 4, "shared": 1,
    },
    "Phi-3-mini": {"architecture": "phi3", "layers": 32, "width": 3072, "inner": 8192, "heads": 32, "fused": True},
    "Qwen3-30B-A3B": {"architecture": "qwen3moe", "layers": 48, "width": 2048, "inner": 768, "experts": 128},
    "Mixtral-8x7B": {"layers": 32, "width": 4096, "inner": 14336, "heads": 32, "shared": 8, "experts": 8},
}  # fmt: skip

Answers = dict[tuple[str, str, bool], dict[str, str] | str]


def answers(folder: Path) -> tuple[Answers, dict[str, float]]:
    """(shape, mix, importance or not) → tensor → type, or an error; and CPU seconds for all mixes of each shape."""
    found: Answers = {}
    seconds = {}
    for shape, settings in SHAPES.items():
        file = read_gguf(make_gguf(folder / f"{shape}.gguf", **settings))
        times = []
        for known in (False, True):
            mixes._answers.cache_clear()
            begin = cpu_seconds()
            for mix in MIXES:
                try:
                    types: dict[str, str] | str = {n: c.kind for n, c in mix_types(file, mix, known).items()}
                except SettleError as e:
                    types = str(e)
                found[shape, mix, known] = types
            times.append(cpu_seconds() - begin)
        seconds[shape] = statistics.median(times)
    return found, seconds


def cpu_seconds() -> float:
    """Of this process and its children that ended: a busy machine does not move it."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--other", nargs="*", type=Path, default=[], help="folders with another llama-cpp-py-sync each")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours, seconds = answers(Path(folder))
        for shape, value in seconds.items():
            print(f"{shape:16} {len(MIXES)} mixes in {value:.2f} s of the processor", flush=True)
        before = os.environ.get("PYTHONPATH", "")
        for other in asked.other:
            os.environ["PYTHONPATH"] = f"{other.resolve()}{os.pathsep}{before}"
            theirs, _ = answers(Path(folder))
            different = [key for key, types in ours.items() if types != theirs[key]]
            refused = sum(isinstance(theirs[key], str) for key in different)
            shapes = ", ".join(dict.fromkeys(shape for shape, _, _ in different))
            names = ", ".join(dict.fromkeys(mix for _, mix, _ in different))
            print(f"{other.name}: {len(different)} of {len(ours)} answers differ, {refused} refused. {shapes}; {names}")


if __name__ == "__main__":
    main()
