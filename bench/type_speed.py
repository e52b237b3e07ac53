"""How fast llama.cpp computes with each type on this processor: its own dot products, in cache, on one core.

    python bench/type_speed.py [--rounds 400]

Prints Markdown: values a nanosecond of each type, the fastest of all rounds, which take the types in turns.
"""

import argparse
import ctypes
import importlib.util
import time
from pathlib import Path

import numpy as np

from settle.shrink.types import ggml
from settle.shrink.types.sensitivity import TYPES

VALUES = 1 << 17
POINTER = ctypes.c_void_p
ACTIVATIONS = {"q8_K": (256, 292), "q8_0": (32, 34), "q8_1": (32, 36)}  # values and bytes of a block


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=400)
    asked = parser.parse_args()
    values = np.random.default_rng(0).standard_normal((1, VALUES)).astype(np.float32)
    made = {kind: ggml.quantize(values, kind, np.ones(VALUES, np.float32)) for kind in TYPES}
    folder = Path(importlib.util.find_spec(ggml.PACKAGE).origin).parent
    base, cpu = (ctypes.CDLL(str(next(folder.glob(f"*ggml-{name}*")))) for name in ("base", "cpu"))
    cpu.ggml_cpu_init()
    read = {name: _activations(base, name, values) for name in ACTIVATIONS}
    best = dict.fromkeys(TYPES, float("inf"))
    out = ctypes.c_float()
    for _ in range(asked.rounds):
        for kind, weights in made.items():
            dot, other = _dot(cpu, kind), read[_partner(kind)]
            start = time.perf_counter()
            dot(VALUES, ctypes.byref(out), 0, weights.ctypes.data, 0, other.ctypes.data, 0, 1)
            best[kind] = min(best[kind], time.perf_counter() - start)
    print("| type | bits a weight | values a nanosecond |\n|---|--:|--:|")
    for kind, seconds in best.items():
        print(f"| {kind} | {made[kind].nbytes * 8 / VALUES:.2f} | {VALUES / seconds / 1e9:.1f} |")


def _partner(kind: str) -> str:
    """Return the type that llama.cpp turns activations into for it."""
    if ggml.block(kind)[0] == 256:
        return "q8_K"
    return "q8_1" if kind.endswith("_1") else "q8_0"


def _activations(base: ctypes.CDLL, name: str, values: np.ndarray) -> np.ndarray:
    block, size = ACTIVATIONS[name]
    out = np.zeros(VALUES // block * size, np.uint8)
    quantize = getattr(base, f"quantize_row_{name}_ref")
    quantize.argtypes = [POINTER, POINTER, ctypes.c_int64]
    quantize(values.ctypes.data, out.ctypes.data, VALUES)
    return out


def _dot(cpu: ctypes.CDLL, kind: str):
    name = f"{kind[:-2].lower()}_K" if kind.endswith("_K") else kind.lower()
    dot = getattr(cpu, f"ggml_vec_dot_{name}_{_partner(kind)}")
    size = ctypes.c_size_t
    dot.argtypes = [ctypes.c_int, POINTER, size, POINTER, size, POINTER, size, ctypes.c_int]
    dot.restype = None
    return dot


if __name__ == "__main__":
    main()
