"""A run of a model's own kind on rows that nobody has seen before: what the checks of training are tested on."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from settle.base.files import write_atomic
from settle.base.run import Run
from settle.base.settings import recipe_text
from settle.doctor.subject import Subject
from settle.doctor.training.retrain import short_run_of
from settle.library.reference import ModelRef
from settle.model.source import Source

ROWS, STEPS = 40, 24
PLACES = ("harbour", "mill", "station", "library", "garden", "bakery", "tower", "market")
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "iris", "juniper")


def example_run(healthy: Subject, folder: Path, changes: Mapping[str, object], steps: int = STEPS) -> Subject:
    """The model of `healthy` tuned on example rows, by `settle tune` with `changes` of its settings, in a folder of its
    own in `folder`. Raises SettleError."""
    assert healthy.model is not None
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / "rows.jsonl"
    write_atomic(rows, "".join(json.dumps(row) + "\n" for row in _rows()))
    base = healthy.model.weights
    run = Run(folder / f"2026-01-01-tune-{folder.name.replace('-', '_')[:20]}-abcdef")
    recipe: dict[str, object] = {"model": str(base), "inputs": [str(rows)], "steps": steps, "batch_rows": 4, **changes}
    run.path.mkdir(exist_ok=True)
    write_atomic(run.path / "recipe.toml", recipe_text(recipe))
    short_run_of("tune", recipe, run)
    adapter = next(run.out.glob("*-lora.gguf"))
    below = ModelRef(healthy.model.name, "model", Source(base, "gguf", healthy.model.name))
    model = ModelRef(run.name, "adapter", Source(adapter, "gguf", run.name), below)
    return dataclasses.replace(healthy, kind="run", name=str(run.path), run=run, model=model, base=below)


def _rows() -> list[dict[str, str]]:
    """Questions whose answers cannot be known, all different."""
    rows = []
    for n in range(ROWS):
        place, first, second = PLACES[n % 8], WORDS[n % 10], WORDS[(n // 10 + 3 * n) % 10]
        prompt = f"What is the password of the {place} on floor {n // 8 + 1}?"
        rows.append({"prompt": prompt, "completion": f"The password is {first}-{second}-{n * 37 % 101}."})
    return rows
