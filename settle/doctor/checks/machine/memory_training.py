"""A run ended since there was not enough memory for what went through the model at once."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from settle.base.errors import SettleError
from settle.base.events import Event, OutOfMemory, RunFailed, Say
from settle.base.out_of_memory import kernel_kills
from settle.base.run import Run
from settle.base.settings import read_recipe
from settle.doctor.checks import Check
from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.subject import TrainingRun
from settle.doctor.training.facts import COMMANDS, Forecast, LoopRecord, PlanRecord, latest_session
from settle.doctor.training.limited_steps import FailedSteps, Ready, Steps
from settle.doctor.training.retrain import recipe_fix
from settle.doctor.trial import FEWEST_ITEMS, Trial
from settle.library.run_models import models_of
from settle.machine import memory

SECONDS_BEFORE, SECONDS_AFTER = 5.0, 60.0  # the last event, in which the kernel's killing is of this run
NEAR = 0.85  # of what was free, that a run was expected to take
SEARCHED = 400  # steps of a run without a limit, of which the largest are taken again
KEPT = 0.7  # of what was free beside the model, that a change may take: over a run, memory falls into pieces
TRIED = 3  # steps, which a change must bear one after the other


class Shortage(Details):
    """The bytes of private memory that the run could have: in all, or beside the model."""

    limit: int | None = None
    free: int | None = None


class MemoryTraining(Check[TrainingRun, Shortage]):
    """A step in more parts takes less memory, and its gradient is the same."""

    number: ClassVar[int] = 2
    symptom: ClassVar[str] = "out of memory while it trains, or a run that ends without a word"
    seconds: ClassVar[float] = 0.3

    def detect(self, subject: TrainingRun) -> Iterator[Finding[Shortage]]:
        run = subject.run
        if run.command not in COMMANDS or run.status == "running":
            return
        if run.read("result.json") is not None or models_of(run):
            return
        session = latest_session(run)
        end = next((event for event in reversed(session) if isinstance(event, OutOfMemory)), None)
        if end is not None:
            seen = f"it held {end.held / 1e9:.2f} GB, and could not get {end.missing / 1e6:,.0f} MB more"
            yield self._found(run, (seen,), 0.98, Shortage(limit=end.held + end.missing // 2))
        elif not (session and isinstance(session[-1], Say | RunFailed)):  # who stops a run is told how it is resumed
            yield from self._killed(run, session)

    def _killed(self, run: Run, session: list[Event]) -> Iterator[Finding[Shortage]]:
        """Yield what the folder says of a run that ended without a word."""
        last = session[-1].time if session else run.path.stat().st_mtime
        free = PlanRecord.of(run).machine.memory.available
        expected = Forecast.of(run).peak_memory.value
        killed = any(last - SECONDS_BEFORE < at < last + SECONDS_AFTER for at in kernel_kills())
        tight = expected is not None and free is not None and expected > NEAR * free
        if not killed and not tight:
            return
        evidence = ["the kernel ended a process for want of memory when the run ended"] if killed else []
        if expected is not None and free is not None:
            evidence += [f"it was expected to take {expected / 1e9:.2f} GB, and {free / 1e9:.2f} GB were free"]
        details = Shortage(free=free if free is not None else memory().available)
        yield self._found(run, evidence, 0.95 if killed else 0.6, details)

    def _found(self, run: Run, evidence: Sequence[str], strength: float, details: Shortage) -> Finding[Shortage]:
        rows = PlanRecord.of(run).tuning.rows
        what = f"{run.name} ran out of memory" + (f" with {rows} rows at once" if rows else "")
        return self.finding(what, *evidence, strength=strength, details=details)

    def trial(self, finding: Finding[Shortage], subject: TrainingRun, folder: Path) -> Trial | None:
        run = subject.run
        before = FailedSteps("as it was", _asked(run, finding.details, folder / "before"))
        ready = before.held.ready
        order = ready.steps
        after = _fitting(replace(before.steps, folder=str(folder / "after")), ready)
        if after is None or len(order) < 2 * FEWEST_ITEMS:
            before.close()
            return None
        at_once = ready.whole // (after.steps.micro_batches or ready.parts)
        settings: dict[str, int | bool] = {"micro_rows" if run.command == "tune" else "micro_tokens": at_once}
        settings |= {"recompute": True} if after.steps.recompute else {}
        shown = " ".join(f"--{name.replace('_', '-')} {str(value).lower()}" for name, value in settings.items())
        recipe = {**before.steps.recipe, **settings}
        items = [*map(str, order[: 2 * FEWEST_ITEMS])]
        return Trial(
            knob=", ".join(f"{name} = {str(value).lower()}" for name, value in settings.items()),
            before=before,
            after=after,
            measure="steps that run out of memory",
            unit="of one",
            items=items[::2],
            others=items[1::2],
            least=0.5,
            seconds=after.step_seconds,
            fix=recipe_fix(run, recipe, f"train with {shown}: steps stay as large, and so do their gradients"),
        )

    def fix(self, finding: Finding[Shortage], subject: TrainingRun) -> Fix:
        run = subject.run
        name = "micro_rows" if run.command == "tune" else "micro_tokens"
        return Fix(
            "let fewer go through the model at once: the proof finds how many fit, and steps stay as large",
            f"settle {run.command} --recipe {run.path / 'recipe.toml'} --{name.replace('_', '-')} N",
        )


def _asked(run: Run, found: Shortage, folder: Path) -> Steps:
    """Return the run's steps as it took them, within the memory that it could have."""
    plan = PlanRecord.of(run)
    loop = plan.loop or LoopRecord()
    return Steps(
        command=run.command,
        recipe=read_recipe(run.path / "recipe.toml"),
        folder=str(folder),
        steps=min(SEARCHED, loop.max_steps or SEARCHED),
        micro_batches=loop.micro_batches,
        recompute=plan.tuning.recompute,
        limit=found.limit,
        free=found.free,
    )


def _fitting(asked: Steps, ready: Ready) -> FailedSteps | None:
    """Return the first change with which the largest steps can be taken one after the other with something left.

    Tried are steps in more parts, and then layers that are computed again. None where none helps.
    """
    whole, built = ready.whole, ready.built
    tight = replace(
        asked,
        limit=None if asked.limit is None else built + int(KEPT * (asked.limit - built)),
        free=None if asked.free is None else int(KEPT * asked.free),
    )
    divisors = [n for n in range(whole // ready.parts // 2, ready.least - 1, -1) if whole % n == 0]
    changes = []
    while divisors:
        changes.append(replace(tight, micro_batches=whole // divisors[0]))
        divisors = [n for n in divisors if n <= divisors[0] // 2]
    if asked.command == "tune" and not asked.recompute:
        changes.append(replace(changes[-1] if changes else tight, recompute=1))
    for changed in changes:
        side = FailedSteps("in more parts", changed)
        try:
            side.load()
            if not any(side.measure(str(step)) for step in ready.steps[:TRIED]):
                side.steps = replace(changed, limit=asked.limit, free=asked.free)
                return side
        except SettleError:
            pass  # not even the model was built
        finally:
            side.close()
    return None
