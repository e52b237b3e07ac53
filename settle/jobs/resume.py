"""Continue a run that was stopped: the same stages, of which those with a product take it from the run's folder."""

from collections.abc import Mapping

from settle.base.errors import RunError, SettleError, UsageError
from settle.base.event_log import Events
from settle.base.events import ResultReady, Say
from settle.base.run import Run
from settle.base.settings import Resolved, read_recipe, resolve
from settle.base.stop_signals import Stopping
from settle.jobs.job import RunContext, RunJob, find_job, follow, sweep
from settle.jobs.settings import JobSettings


def resume(name: str, events: Events) -> int:
    """To the end that the run would have had without the stop. Returns the exit code. Raises SettleError."""
    run = Run.find(name)
    with run.lock(), Stopping() as stopping:
        result = run.result()
        if result is not None:
            events.emit(Say(text=f"{run.name} is finished; there is nothing to resume"))
            events.emit(ResultReady(result=result.to_json()))
            return 0
        sweep(run)
        events.move_to(run.events)
        job = job_of(run)
        record = run.read("plan.json")
        if record is not None and not isinstance(record, dict):
            raise edited(run, "it is not an object")
        settings = asked_settings(job, run, record)
        if record is None:
            if "-" in settings.value.inputs:
                raise RunError(
                    f"{run.name} read from stdin and was stopped before it had read it all", "start it again"
                )
            events.emit(Say(text=f"{run.name} was stopped before its first step: it starts again"))
        context = job.context(run, settings.value, events, stopping, origin=settings.origin, record=record)
        return follow(job, context).exit_code or 0


def job_of(run: Run) -> RunJob[RunContext]:
    """Return the job that made the run, by its folder's name. Raises RunError."""
    return find_job(run.command)


def edited(run: Run, what: str) -> RunError:
    return RunError(f"plan.json of {run.name} was changed: {what}", "restore it, or start a new run")


def asked_settings(job: RunJob[RunContext], run: Run, record: Mapping[str, object] | None) -> Resolved[JobSettings]:
    """Return the settings of a run, by recipe.toml, or by plan.json where the recipe was lost or is not valid TOML."""
    path, asked = run.path / "recipe.toml", (record or {}).get("asked")
    try:
        if path.exists():
            return resolve(job.settings, [("recipe.toml", read_recipe(path))])
    except SettleError:
        if not isinstance(asked, dict):
            raise
    if not isinstance(asked, dict):
        raise RunError(
            f"{run.name} has neither plan.json nor recipe.toml", f"`settle runs remove {run.name}`, and start it again"
        )
    known = {key: value for key, value in asked.items() if key in job.settings.model_fields or key in _renamed(job)}
    try:
        return resolve(job.settings, [("plan.json", known)])
    except UsageError as e:
        raise edited(run, e.what) from None


def _renamed(job: RunJob[RunContext]) -> Mapping[str, str]:
    return getattr(job.settings, "renamed", {})
