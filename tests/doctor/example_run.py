"""A run of a model's own kind on rows that nobody has seen before: what the checks of training are tested on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from settle.base.files import write_atomic
from settle.base.run import Run
from settle.base.settings import recipe_text
from settle.doctor.subject import ExportedRun, ModelFile
from settle.doctor.training.retrain import short_run_of
from settle.library.reference import ModelRef
from settle.model.source import Source

ROWS, STEPS = 40, 24
PLACES = ("harbour", "mill", "station", "library", "garden", "bakery", "tower", "market")
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "iris", "juniper")


def example_run(
    healthy: ModelFile,
    folder: Path,
    changes: Mapping[str, object],
    steps: int = STEPS,
    rows: Sequence[Mapping[str, object]] = (),
) -> ExportedRun:
    """Tune the model of `healthy` on example rows, or on `rows`, in a folder of its own in `folder`.

    changes: of the settings of `settle tune`. Raises SettleError.
    """
    base = healthy.model.weights
    run, recipe = example_recipe(base, folder, {"steps": steps, "batch_rows": 4, **changes}, rows or example_rows())
    short_run_of("tune", recipe, run)
    adapter = next(run.out.glob("*-lora.gguf"))
    below = ModelRef(healthy.model.name, "model", Source(base, "gguf", healthy.model.name))
    model = ModelRef(run.name, "adapter", Source(adapter, "gguf", run.name), below)
    return ExportedRun(str(run.path), run, model, running=healthy.running)


def example_recipe(
    base: Path, folder: Path, settings: Mapping[str, object], rows: Sequence[Mapping[str, object]]
) -> tuple[Run, dict[str, object]]:
    """Return a run in `folder` that has its recipe, and what that says."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
    run = Run(folder / f"2026-01-01-tune-{folder.name.replace('-', '_')[:20]}-abcdef")
    recipe: dict[str, object] = {"model": str(base), "inputs": [str(path)], **settings}
    run.path.mkdir(exist_ok=True)
    write_atomic(run.path / "recipe.toml", recipe_text(recipe))
    return run, recipe


def example_rows() -> list[dict[str, str]]:
    """Return questions whose answers cannot be known, all different."""
    rows = []
    for n in range(ROWS):
        place, first, second = PLACES[n % 8], WORDS[n % 10], WORDS[(n // 10 + 3 * n) % 10]
        prompt = f"What is the password of the {place} on floor {n // 8 + 1}?"
        rows.append({"prompt": prompt, "completion": f"The password is {first}-{second}-{n * 37 % 101}."})
    return rows
