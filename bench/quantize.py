"""Bytes, time and memory of quantizing against llama.cpp's own `llama_model_quantize`, file for file.

    python bench/quantize.py smollm2-f16.gguf gemma3-f16.gguf --imatrix smollm2.gguf gemma3.gguf --rounds 3

The models are GGUF files in F16, BF16 or F32; the importance files, one for each model, may be left out: then means are
drawn. Each file is made in a process of its own, ours and theirs in turns, with the same number of threads. The time is
that of the call, reading and writing included, and so is the processor's time of it, which a busy machine does not
move; memory is the process's peak above what it held before the call, pages
of the source that are mapped included. Results go to stdout as JSON, a table to stderr.
"""

import argparse
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RECIPES = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K", "IQ4_XS", "Q4_0"]


def ours(job: dict) -> None:
    from settle.base import chat_template
    from settle.formats.gguf import read_gguf
    from settle.shrink.types import ggml
    from settle.shrink.types.imatrix import read_imatrix
    from settle.shrink.types.mixes import mix_types
    from settle.shrink.types.quantize_file import quantize_gguf

    # libraries are loaded before on both sides
    chat_template.complaint("")
    ggml.quantize(np.zeros((1, 256), np.float32), "Q8_0")
    importance = read_imatrix(job["imatrix"]) if job["imatrix"] else None
    with measured():
        file = read_gguf(job["source"])
        chosen = mix_types(file, job["recipe"], importance is not None)
        kinds = {name: choice.kind for name, choice in chosen.items()}
        quantize_gguf(job["source"], job["target"], kinds, importance, job["recipe"], threads=job["threads"], file=file)


def theirs(job: dict) -> None:
    from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

    from settle.shrink.types.imatrix import read_imatrix
    from settle.shrink.types.mixes import MIXES

    ffi, lib = get_ffi(), get_lib()
    lib.llama_backend_init()
    params = ffi.new("llama_model_quantize_params *", lib.llama_model_quantize_default_params())
    params.nthread, params.ftype = job["threads"], MIXES[job["recipe"]]
    kept = []
    if job["imatrix"]:
        means = read_imatrix(job["imatrix"]).means
        params.imatrix = entries = ffi.new("struct llama_model_imatrix_data[]", len(means) + 1)
        for entry, (name, values) in zip(entries, means.items(), strict=False):
            kept += [ffi.new("char[]", name.encode()), ffi.from_buffer("float[]", values)]
            entry.name, entry.data, entry.size = kept[-2], kept[-1], values.size
    with measured():
        failed = lib.llama_model_quantize(str(job["source"]).encode(), str(job["target"]).encode(), params)
    assert not failed


class measured:  # noqa: N801
    """Prints seconds, seconds of the processor and bytes of what happens within."""

    def __enter__(self) -> None:
        self.held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.start, self.cpu = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        seconds, cpu = time.perf_counter() - self.start, time.process_time() - self.cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"seconds": seconds, "cpu": cpu, "bytes": (peak - self.held) * 1024}))


def run(side: str, job: dict) -> dict:
    """One file in a process of its own: seconds, bytes, and the file's hash. The file is removed."""
    command = [sys.executable, __file__, "--one", side, json.dumps(job, default=str)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    told = json.loads(done.stdout.splitlines()[-1])
    with open(job["target"], "rb") as f:
        told["sha256"] = hashlib.file_digest(f, "sha256").hexdigest()
    told["size"] = job["target"].stat().st_size
    job["target"].unlink()
    return told


def drawn_importance(source: Path, path: Path) -> Path:
    """Means as wide as those of real models, for a model that has no importance file."""
    from settle.formats.gguf import read_gguf
    from settle.shrink.types.imatrix import Importance, write_imatrix

    random, means = np.random.default_rng(0), {}
    for name, tensor in read_gguf(source).tensors.items():
        if len(tensor.shape) > 1:
            size = tensor.shape[-1] * (tensor.shape[0] if len(tensor.shape) > 2 else 1)
            means[name] = np.exp(2 * random.standard_normal(size)).astype(np.float32)
    write_imatrix(path, Importance(means, 1024, ["drawn"]))
    return path


def compared(
    source: Path, recipe: str, imatrix: Path | None, rounds: int, threads: int, folder: Path, turn: int
) -> dict:
    from settle.formats.gguf import read_gguf

    job = {"source": source, "recipe": recipe, "imatrix": imatrix, "threads": threads, "target": folder / "out.gguf"}
    told: dict[str, list[dict]] = {"ours": [], "theirs": []}
    for number in range(rounds):
        for side in ("ours", "theirs") if (number + turn) % 2 else ("theirs", "ours"):
            told[side].append(run(side, job))
    hashes = {r["sha256"] for rows in told.values() for r in rows}
    seconds = {side: [r["seconds"] for r in rows] for side, rows in told.items()}
    cpu = {side: statistics.median(r["cpu"] for r in rows) for side, rows in told.items()}
    return {
        "model": source.stem,
        "recipe": recipe,
        "importance": imatrix is not None,
        "identical": len(hashes) == 1,
        "size": told["ours"][0]["size"],
        "seconds": {side: statistics.median(values) for side, values in seconds.items()},
        "speed": statistics.median(t / o for o, t in zip(seconds["ours"], seconds["theirs"], strict=True)),
        "cpu": cpu,
        "cpu_speed": cpu["theirs"] / cpu["ours"],
        "peak": {side: max(r["bytes"] for r in rows) for side, rows in told.items()},
        "largest_tensor": max(t.num_bytes for t in read_gguf(source).tensors.values()),
    }


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        {"ours": ours, "theirs": theirs}[sys.argv[2]](json.loads(sys.argv[3]))
        return
    from settle.shrink.types.ggml import num_threads

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--imatrix", nargs="*", type=Path, default=[], help="one for each model")
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=num_threads())
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for index, source in enumerate(asked.models):
            given = asked.imatrix[index] if index < len(asked.imatrix) else None
            imatrix = given or drawn_importance(source, Path(folder) / f"{index}.gguf")
            for recipe in asked.recipes:
                for known in (None, imatrix):
                    row = compared(source, recipe, known, asked.rounds, asked.threads, Path(folder), len(rows))
                    rows.append(row)
                    print(
                        f"{row['model']:20} {recipe:8} {'importance' if known else 'plain':10} "
                        f"{'identical' if row['identical'] else 'DIFFERENT'} {row['size'] / 1e6:7.1f} MB  "
                        f"{row['seconds']['ours']:6.2f} s, theirs {row['seconds']['theirs']:6.2f} s, "
                        f"speed {row['speed']:.2f}, by the processor {row['cpu_speed']:.2f}  "
                        f"peak {row['peak']['ours'] / 1e6:5.0f} MB, "
                        f"theirs {row['peak']['theirs'] / 1e6:5.0f} MB",
                        file=sys.stderr,
                    )
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
