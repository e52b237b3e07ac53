"""The law of this machine: short runs of llama.cpp with a few models that are here correct two numbers.

Run once for each file and remembered; what was measured while the machine was busy is measured again later.
"""

from collections.abc import Mapping, Sequence
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
    return _model_run(path, remembered(key("cpu", threads), _name(path), lambda: _run(path, threads)))


def recalled_runs() -> list[ModelRun]:
    """Return what was measured of the files that are here while the machine was quiet; run nothing."""
    here = key("cpu", num_threads(None))
    found = {path: recalled(here, _name(path), is_quiet=True) for path in writing_files()}
    return [_model_run(path, figures) for path, figures in found.items() if figures]


def _model_run(path: Path, figures: Mapping[str, float]) -> ModelRun:
    return ModelRun(shape_of_file(path, path.stem), figures["decode"], figures["prefill"], int(figures["memory"]))


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
    models = [(run.model.shape, run.model.type or "", run.model.matrices) for run in usable]
    context = PROMPT + WRITTEN // 2
    writing = [decode_terms(shape, kind, machine, context, matrices=matrices) for shape, kind, matrices in models]
    reading = [prefill_terms(shape, kind, machine, PROMPT, matrices) for shape, kind, matrices in models]
    decode = _fitted(writing, ("matrices", "layers")[:number], seconds[:, 0])
    prefill = _fitted(reading, ("matrices", "start")[:number], seconds[:, 1])
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


def _fitted(terms: Sequence[Mapping[str, float]], names: Sequence[str], seconds: np.ndarray) -> dict[str, float]:
    """Fit least squares of the relative error; a negative coefficient is left out and the rest fitted again."""
    matrix = np.array([[of_run[name] for name in names] for of_run in terms]) / seconds[:, None]
    found = np.linalg.lstsq(matrix, np.ones(len(seconds)), rcond=None)[0]
    if (found < 0).any() and len(found) > 1:
        kept = int(np.argmax(found))
        alone = np.linalg.lstsq(matrix[:, [kept]], np.ones(len(seconds)), rcond=None)[0][0]
        found = [alone if i == kept else 0.0 for i in range(len(found))]
    return {name: float(value) for name, value in zip(names, found, strict=True)}
