"""A run with one setting changed: trained again in short for a proof, and as a recipe for the user."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from settle.base.errors import UsageError
from settle.base.files import write_atomic
from settle.base.run import Run
from settle.base.settings import recipe_text
from settle.doctor.findings import Fix, check_free
from settle.doctor.training.facts import Recipe, TrainingFacts, TunedFacts
from settle.doctor.training.rows import Served

TRAINING_SECONDS = 60.0  # that one side of a proof may train
FEWEST_STEPS, MOST_STEPS = 6, 200
LOADING_SECONDS = 12.0  # of what a side does before and after its steps
USUAL_RATE = {"adapter": 3e-4, "full": 3e-5}  # as `settle tune` takes over bases of usual width
NOT_AGAIN = (
    "name", "dry", "recipe", "seeds", "time", "tokens", "epochs", "max_cost", "sample", "compare", "score", "version",
)  # fmt: skip


def most_steps(facts: TrainingFacts) -> int:
    """Return the steps that a side of a proof can take in its time."""
    if not facts.step_seconds:
        return 2 * FEWEST_STEPS
    return max(FEWEST_STEPS, min(MOST_STEPS, int(TRAINING_SECONDS / facts.step_seconds)))


def training_seconds(facts: TrainingFacts, steps: int) -> float:
    """Return the time that so many steps take, with making the file ready."""
    return steps * (facts.step_seconds or 3.0) + LOADING_SECONDS


def with_rate(recipe: Recipe, rate: float) -> Recipe:
    """Return a recipe with another learning rate."""
    optimizer = recipe.get("optimizer")
    own = dict(optimizer) if isinstance(optimizer, Mapping) else {"name": optimizer} if optimizer else {}
    return {**recipe, "optimizer": {**own, "lr": rate}}


def usual_rate(facts: TrainingFacts) -> float:
    """Return the rate of a run that nobody asked one for: its own where that is so, else that of usual widths."""
    if not facts.rate_is_asked and facts.rate:
        return facts.rate
    return USUAL_RATE["full" if facts.whole else "adapter"]


def retrained(facts: TrainingFacts, recipe: Recipe, steps: int, folder: Path) -> Callable[[], Served]:
    """Return what makes the run again by `recipe`, `steps` steps long, in `folder`, where it is not there yet."""

    def make() -> Served:
        inputs = recipe.get("inputs")
        if isinstance(inputs, list | tuple) and "-" in inputs:
            raise UsageError(f"{facts.run.name} read its rows from stdin", "give them in a file, and run it again")
        short = {key: value for key, value in recipe.items() if key not in NOT_AGAIN}
        run = Run(folder)
        short_run_of(facts.run.command, {**short, "steps": steps}, run)
        return served_by(run)

    return make


def served_by(run: Run) -> Served:
    """Return what a run made. Raises UsageError where that is gone."""
    served = Served.of_run(run)
    if served is None:
        raise UsageError(f"{run.name} has made no model that is still there", "export it again")
    return served


def short_run_of(command: str, recipe: Recipe, run: Run) -> None:
    """Train by `recipe` in the folder of `run`, without forecast, proof and gate. Raises SettleError."""
    _short_runs().short_run(command, recipe, run)


def keeps_adapter(run: Run) -> bool:
    """Return whether the weights that it trained are there beside what it exported."""
    return (run.out / "adapter").is_dir()


def exported_again(facts: TunedFacts, path: Path) -> Callable[[], Served]:
    """Return what makes a run's adapter again for llama.cpp, at `path`, from the weights that the run keeps."""

    def make() -> Served:
        return Served(facts.base, _short_runs().exported_again(facts.run, facts.base, path))

    return make


def _short_runs() -> ModuleType:
    from settle.jobs import short_run  # loads torch, which a look does not need

    return short_run


def recipe_fix(run: Run, recipe: Recipe, what: str) -> Fix:
    """Return the fix that writes a changed recipe into this folder, for the user to run. what: in the imperative."""
    out = Path.cwd() / f"{run.name}-fixed.toml"
    command = f"settle {run.command} --recipe {out.name}"

    def write() -> str:
        check_free(out)
        changed = {key: value for key, value in recipe.items() if key not in ("version", "recipe", "dry")}
        write_atomic(out, recipe_text({**changed, "name": f"{run.name}-fixed"}))
        return f"wrote {out}; `{command}` trains by it"

    return Fix(what, command, write, undo=lambda: out.unlink(missing_ok=True))
