"""settle resume: a run that was stopped, however it was, goes on to the end it would have had."""

import importlib.metadata
import shutil
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from settle.base.errors import RunError
from settle.base.event_log import Events
from settle.base.events import ForecastReady, ResultReady, Say, Warn
from settle.base.file_version import refuse_newer
from settle.base.registry import part
from settle.base.run import Run
from settle.base.settings import read_recipe, resolve
from settle.base.stop_signals import Stopping
from settle.commands import Command
from settle.commands._session import RunCommand, Spending, go_on

if TYPE_CHECKING:
    from settle.plan.training_job import TrainingJob


class Resume(Command):
    """Go on with a run that was stopped: by Ctrl-C, a kill, a power cut or a full disk.

    It ends as it would have without the stop, to the last bit where the plan ends it by steps or tokens; by the clock
    (`--time`) it spends what is left of the time.
    """

    positional: ClassVar[tuple[str, ...]] = ("name",)

    name: str = Field(description="the run, as `settle runs` lists it")

    def run(self, events: Events) -> int:
        run = Run.find(self.name)
        with run.lock(), Stopping() as stopping:
            result = run.read("result.json")
            if result is not None:
                events.emit(Say(text=f"{run.name} is finished; there is nothing to go on with"))
                events.emit(ResultReady(result=result))
                return 0
            _sweep(run)
            if run.command == "shrink":
                from settle.jobs.shrink import resume

                return resume(run, _recipe(run), events)
            command = _command(run)
            record = run.read("plan.json")
            if record is None:
                return _start_again(command, run, stopping, events)
            spending = Spending()
            job = _job(command, run, record, events)
            spending.start(job.plan.device, (record.get("asked") or {}).get("watts"))
            events.move_to(run.events)
            if (expected := run.read("forecast.json")) is not None:
                events.emit(ForecastReady(forecast=expected))
            return go_on(command, run, job, spending, stopping, events)


def _sweep(run: Run) -> None:
    """Remove what a killed process left half-written; the lock says that nobody is writing now."""
    in_out = [path for pattern in (".*.part", ".hf-*", ".unproven-*") for path in run.out.glob(pattern)]
    for path in [*run.path.glob(".*.part"), *run.path.glob(".work-*"), *in_out]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    run.out.mkdir(exist_ok=True)
    run.checkpoints.mkdir(exist_ok=True)


def _command(run: Run) -> type[RunCommand]:
    """The command that made the run, by its folder's name."""
    command = part("commands", run.command)
    if not issubclass(command, RunCommand):
        raise RunError(f"{run.path.name} is not a run that can be gone on with", "see `settle runs`")
    return command


def _start_again(command: type[RunCommand], run: Run, stopping: Stopping, events: Events) -> int:
    """A run killed before its first step has nothing but its recipe."""
    resolved = resolve(command, [("asked", _recipe(run))])
    if "-" in resolved.value.inputs:
        raise RunError(f"{run.name} was to read from stdin and was stopped before it had", "start it again")
    events.emit(Say(text=f"{run.name} was stopped before its first step: it starts again"))
    return resolved.value.start(run, resolved.origin, stopping, events)


def _recipe(run: Run) -> dict[str, Any]:
    if not (run.path / "recipe.toml").exists():
        raise RunError(
            f"{run.name} has neither plan.json nor recipe.toml", f"`settle runs remove {run.name}`, and start it again"
        )
    return read_recipe(run.path / "recipe.toml")


def _job(command: type[RunCommand], run: Run, record: Any, events: Events) -> "TrainingJob":
    """The run's plan made live again. Raises RunError naming what was changed since."""
    from settle.machine import accelerator
    from settle.plan.training_job import IDENTITY, TrainingJob
    from settle.plan.training_plan import PLAN_VERSION, TrainingPlan
    from settle.train.checkpoint import newest_state

    if not isinstance(record, dict):
        raise _edited(run, "it is not an object")
    refuse_newer(record, PLAN_VERSION, f"plan.json of {run.name}")
    for key in (*TrainingPlan.__dataclass_fields__, "corpus"):
        if key not in record:
            raise _edited(run, f"{key} is missing")
    saved = newest_state(run.checkpoints)
    if saved is not None:
        _refuse_changes(run, {key: record[key] for key in IDENTITY}, saved["identity"])
    _warn_of_versions(record, events)
    try:
        plan = TrainingPlan.from_json(record)
        accelerator(plan.device)
        return TrainingJob.build(plan, _corpus(command, run, record, events))
    except (TypeError, ValueError, KeyError, AttributeError) as e:
        raise _edited(run, str(e).replace("\n", " ")) from None


def _refuse_changes(run: Run, now: dict[str, Any], was: dict[str, Any]) -> None:
    """Raises RunError for the first key that is not as it was when the newest checkpoint was made."""
    now, was = _flat(now), _flat(was)
    for key in {**was, **now}:
        if now.get(key) != was.get(key):
            raise _edited(run, f"{key} is {now.get(key)!r}, the checkpoints were made with {was.get(key)!r}")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _edited(run: Run, what: str) -> RunError:
    return RunError(f"plan.json of {run.name} was changed: {what}", "put it back as it was, or start a new run")


def _warn_of_versions(record: dict[str, Any], events: Events) -> None:
    then = record.get("versions") or {}
    for package in ("torch", "numpy"):
        now = importlib.metadata.version(package)
        if then.get(package, now) != now:
            text = f"{package} was {then[package]} and is {now} now: the run goes on, but not bit for bit the same"
            events.emit(Warn(text=text))


def _corpus(command: type[RunCommand], run: Run, record: dict[str, Any], events: Events) -> Any:
    """The token store of the run; made again from the recipe's inputs when it was deleted."""
    corpus = command.stored_corpus(record)
    if corpus is not None:
        return corpus
    settings = resolve(command, [("recipe.toml", _recipe(run))]).value
    if "-" in settings.inputs:
        raise RunError("the tokens of this run were deleted, and they came from stdin", "start a new run")
    events.emit(Say(text="the tokens of this run were deleted: they are made again"))
    corpus = settings.corpus(events)
    if corpus.fingerprint != record["corpus"]:
        raise RunError(
            f"the data is not what the run began with: corpus is {corpus.fingerprint}, it was {record['corpus']}",
            "bring the inputs back as they were, or start a new run",
        )
    return corpus
