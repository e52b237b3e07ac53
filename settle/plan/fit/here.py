"""The law of this machine: short runs of llama.cpp with a few models that are here correct two numbers.

ModelRun once for each file and remembered; what was measured while the machine was busy is measured again later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from settle.base.errors import FormatError, UsageError
from settle.infer.child_process import Child, Load
from settle.library.facts import read_facts
from settle.library.resolve import all_refs
from settle.library.store import stamp_of
from settle.machine import Machine, memory, num_threads, resident
from settle.machine.measurement_cache import key, recalled, remembered
from settle.plan.fit.model_shapes import NamedShape, shape_of_file
from settle.plan.fit.speed import Law, decode_terms, laws, prefill_terms
from settle.plan.fit.weight_types import TYPES

PROMPT, WRITTEN, ROUNDS = 256, 48, 3  # tokens of a run, and runs of which the best counts
TEXT = "The harbour was quiet in the morning, and the boats came back one after the other with what they had. "
MEASURED_SPREAD = 0.12  # of the logarithm: files that were left out of the runs (bench/planning_here.py)
MOST_RUNS = 4  # files that are measured


@dataclass(frozen=True)
class ModelRun:
    """One run: tokens per second written and read, bytes that llama.cpp's process held."""

    model: NamedShape
    decode: float
    prefill: float
    memory: int


def measure_file(path: Path) -> ModelRun:
    """Run the model for a few seconds, once for each file. Raises EngineError, FormatError."""
    threads = num_threads(None)
    found: dict[str, float] = remembered(key("cpu", threads), _name(path), lambda: _run(path, threads))
    return ModelRun(shape_of_file(path, path.stem), found["decode"], found["prefill"], int(found["memory"]))


def recalled_runs() -> list[ModelRun]:
    """Return what was measured of the files that are here while the machine was quiet; run nothing."""
    runs = []
    for path in writing_files():
        found = recalled(key("cpu", num_threads(None)), _name(path), is_quiet=True)
        if found:
            runs.append(
                ModelRun(shape_of_file(path, path.stem), found["decode"], found["prefill"], int(found["memory"]))
            )
    return runs


def measure_some() -> list[ModelRun]:
    """Run MOST_RUNS of the models that are here, from the smallest to the largest.

    Raises UsageError where there is none, EngineError.
    """
    files = [path for path in writing_files() if path.stat().st_size < memory().available * 0.6]
    if not files:
        raise UsageError("no model here can be measured", "get one: `settle pull smollm2`")
    places = np.linspace(0, len(files) - 1, MOST_RUNS).round().astype(int).tolist()
    return [measure_file(files[place]) for place in dict.fromkeys(places)]


def writing_files() -> list[Path]:
    """GGUF files of models that write text, smallest first."""
    files = []
    for ref in all_refs():
        try:
            if ref.kind == "model" and ref.source.kind == "gguf" and read_facts(ref.weights).use == "generate":
                files.append(ref.weights)
        except (FormatError, OSError):
            continue  # a damaged file is no model that could be measured
    return sorted(dict.fromkeys(files), key=lambda path: path.stat().st_size)


def _name(path: Path) -> str:
    return f"fit: llama.cpp {version('xllamacpp')} {path.resolve()} {stamp_of(path)}"


def _run(path: Path, threads: int) -> dict[str, float]:
    child = Child(Load(path, PROMPT + WRITTEN + 64, threads=threads))
    try:
        child.start()
        ids = child.post("/tokenize", {"content": TEXT * PROMPT})["tokens"][:PROMPT]
        body = {"prompt": ids, "n_predict": WRITTEN, "ignore_eos": True, "cache_prompt": False, "temperature": 0.0}
        timings = [child.post("/completion", body)["timings"] for _ in range(ROUNDS)]
        held = resident(child.pid)
    finally:
        child.close()
    return {
        "decode": max(float(t["predicted_per_second"]) for t in timings),
        "prefill": max(float(t["prompt_per_second"]) for t in timings),
        "memory": float(held),
    }


def law_here(measured: Sequence[ModelRun], machine: Machine) -> Law:
    """Correct what the processor's matrices and layers cost by these runs.

    One run corrects one number, two or more correct both; none gives the law as it ships.
    """
    law = laws()["cpu"]
    usable = [run for run in measured if run.model.type in TYPES]
    if not usable:
        return law
    number = min(2, len(usable))
    seconds = np.array([[1 / run.decode, 1 / run.prefill] for run in usable])
    written = np.array([list(_written(run, machine).values())[:number] for run in usable])
    read = np.array([list(_read(run, machine).values())[:number] for run in usable])
    decode = dict(zip(("matrices", "layers"), _relative(written, seconds[:, 0]), strict=False))
    prefill = dict(zip(("matrices", "start"), _relative(read, seconds[:, 1]), strict=False))
    return law.model_copy(
        update={
            "decode": decode,
            "mixture": decode,
            "prefill": prefill,
            "decode_spread": MEASURED_SPREAD,
            "prefill_spread": MEASURED_SPREAD,
            "rows": len(usable),
            "source": "runs on this machine",
        }
    )


def _written(run: ModelRun, machine: Machine) -> dict[str, float]:
    model, context = run.model, PROMPT + WRITTEN // 2
    terms = decode_terms(model.shape, model.type or "", machine, context, matrices=model.matrices)
    return {name: terms[name] for name in ("matrices", "layers")}


def _read(run: ModelRun, machine: Machine) -> dict[str, float]:
    model = run.model
    terms = prefill_terms(model.shape, model.type or "", machine, PROMPT, model.matrices)
    return {name: terms[name] for name in ("matrices", "start")}


def _relative(terms: np.ndarray, seconds: np.ndarray) -> list[float]:
    """Least squares of the relative error; a negative coefficient is left out and the rest fitted again."""
    matrix = terms / seconds[:, None]
    found = np.linalg.lstsq(matrix, np.ones(len(seconds)), rcond=None)[0]
    if (found < 0).any() and len(found) > 1:
        kept = int(np.argmax(found))
        alone = np.linalg.lstsq(matrix[:, [kept]], np.ones(len(seconds)), rcond=None)[0][0]
        return [float(alone) if i == kept else 0.0 for i in range(len(found))]
    return [float(value) for value in found]
