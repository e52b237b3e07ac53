"""The life of every job: its folder, its lock, its stages one after the other, and what a stop leaves behind.

A stage is a function that takes the context of its job and adds its product to it. A stage whose product is there
already, from an earlier session, takes it from the folder: that is all there is to resuming.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

from settle.audit.session import ledger
from settle.base.errors import FULL_DISK, ResourceError, RunError, SettleError, UsageError, disk_is_full
from settle.base.event_log import Events
from settle.base.events import OutOfMemory, PhaseStarted, ResultReady, RunFailed, RunStarted, Say
from settle.base.files import write_atomic
from settle.base.out_of_memory import held_data, missing_bytes
from settle.base.run import FAILS_SOON_SECONDS, Run, WorkFolder, free_name
from settle.base.run.launcher import launched
from settle.base.settings import Resolved, Settings, read_recipe, recipe_text, resolve
from settle.base.stop_signals import Stopping
from settle.base.version import __version__
from settle.base.words.sentences import NOTHING_KEPT
from settle.jobs.settings import JobSettings
from settle.machine.resource_usage import Spending

INTERRUPTED = 130  # exit code
FOLLOWERS = {"refit": "train", "member": "train", "ensemble": "train"}  # jobs whose runs follow those of another one


@dataclass
class Context:
    """What the stages of one session share; a job's own context adds its products."""

    folder: WorkFolder
    settings: Settings
    events: Events
    stopping: Stopping
    spending: Spending = field(default_factory=Spending)
    safe: str = ""  # what a full disk cannot harm any more, once there is such a thing
    exit_code: int | None = None  # set by the stage that ends the session
    resources: ExitStack = field(default_factory=ExitStack)  # closed when the session ends

    def seconds_left(self, stage: str) -> float | None:
        """Return the seconds until the work ends, when `stage` begins; None when they are not known."""
        return None

    def finished(self, stage: str, seconds: float) -> None:
        """Note that a stage has ended, after so many seconds."""

    def needs_less(self) -> str:
        """Return the advice for work that ran out of memory."""
        return "end other programs, or take a smaller model"

    def continues(self) -> str:
        """Return how work that was stopped goes on; "" where that is said elsewhere, or nothing is kept."""
        return ""


@dataclass
class RunContext(Context):
    """What the stages of a run share."""

    folder: Run
    settings: JobSettings
    origin: Mapping[str, str] = field(default_factory=dict)  # where each setting came from
    record: Mapping[str, Any] | None = None  # plan.json of an earlier session
    gate: Mapping[str, object] | None = None  # the report of the check of the exported file
    comparison: Mapping[str, object] | None = None  # with what the model was made from

    @property
    def run(self) -> Run:
        """The folder, as the stages of a run call it."""
        return self.folder

    def continues(self) -> str:
        return f"stopped; `settle resume {self.run.name}` continues" if self.run.has_begun else ""


C = TypeVar("C", bound=Context)
R = TypeVar("R", bound=RunContext)


@dataclass(frozen=True)
class Job(Generic[C]):
    """A job: the command that starts it, and its stages in order."""

    name: str
    stages: tuple[Callable[[C], None], ...]


@dataclass(frozen=True)
class RunJob(Job[R]):
    """A job that makes a run, with what its command may be asked."""

    settings: type[JobSettings]
    context: type[R]
    is_shared: bool = False  # whether the ranks of torchrun share the steps of its stage `loop`
    followers: tuple[str, ...] = ()  # jobs of which one's run follows a finished one of this, where that asks for it
    settings_after: Callable[[Run], JobSettings | None] = lambda run: None  # of a follower: its settings, by that run
    is_extra: bool = False  # of a follower: the answer stays that of the run before it


def find_job(name: str) -> RunJob[RunContext]:
    """Return the job of that name, `JOB` of the module of that name, importing it. Raises RunError."""
    module, constant = (FOLLOWERS[name], name.upper()) if name in FOLLOWERS else (name, "JOB")
    if name.isidentifier() and find_spec(f"settle.jobs.{module}") is not None:
        job: RunJob[RunContext] | None = getattr(import_module(f"settle.jobs.{module}"), constant, None)
        if job is not None:
            return job
    raise RunError(f"{name!r} makes no run that can be resumed", "see `settle runs`")


def start(job: RunJob[R], settings: JobSettings, events: Events) -> R:
    """Make a new run, from its folder to its result. Raises SettleError.

    A run that did not begin leaves no folder, unless an error ended long preparations: a page may show it by then.
    """
    if (launch := launched()) and launch.size > 1 and not job.is_shared:
        raise UsageError(
            f"{job.name} runs in one process, and torchrun started {launch.size}", "start it without torchrun"
        )
    resolved = settings.with_recipe()
    settings = resolved.value
    settings.check(job.name)
    run = Run.create(job.name, settings.name or free_name(settings.usual_name()))
    if not settings.dry:
        events.emit(RunStarted(name=run.name, path=str(run.path)))
    began = time.monotonic()
    with run.lock(), Stopping() as stopping:
        events.move_to(run.events)  # before the first stage: reading and measuring may take minutes
        try:
            write_atomic(run.path / "recipe.toml", recipe_text(settings.to_recipe()))
            context = follow(job, job.context(run, settings, events, stopping, origin=resolved.origin))
        except KeyboardInterrupt:
            if not run.has_begun:
                events.emit(Say(text=NOTHING_KEPT))
            raise
        finally:
            failed_late = run.failure is not None and time.monotonic() - began > FAILS_SOON_SECONDS
            if not run.has_begun and (settings.dry or not failed_late):
                events.close()
                shutil.rmtree(run.path)  # there is nothing to resume
    if not settings.dry and (follower := _follower(job, run)):
        context.exit_code = _follow_up(*follower, run, events)
    return context


def _follower(job: RunJob[R], run: Run) -> tuple[RunJob[RunContext], JobSettings] | None:
    """Return the job and settings of the first run that follows a finished one and is not finished; None without."""
    for follower in map(find_job, job.followers):
        if settings := follower.settings_after(run):
            known = Run.named(str(settings.name))
            return (follower, settings) if known is None or known.result() is None else _follower(follower, known)
    return None


def _follow_up(follower: RunJob[RunContext], settings: JobSettings, run: Run, events: Events) -> int:
    """Make the run that follows a finished one, or resume it, and return its exit code."""
    name = str(settings.name)
    code = start(follower, settings, events).exit_code if Run.named(name) is None else resume(name, events)
    if follower.is_extra and not code and (result := run.result()):
        events.emit(ResultReady(result=result.to_json()))  # the answer is that of the run which was asked for
    return code or 0


def follow(job: Job[C], context: C) -> C:
    """Run the stages in order, until one ends the session.

    An error that ends it is in the run's events, too. Raises ResourceError when memory or the disk runs out.
    """
    try:
        with ledger(job.name) as open_ledger, context.resources:
            open_ledger.put_into(context.folder.path)
            for stage in job.stages:
                left, name = context.seconds_left(stage.__name__), stage.__name__
                context.events.emit(PhaseStarted(phase=name, elapsed=context.spending.total, left=left))
                began = time.monotonic()
                stage(context)
                context.finished(name, time.monotonic() - began)
                if context.exit_code is not None:
                    break
    except KeyboardInterrupt:
        if text := context.continues():
            context.events.emit(Say(text=text))
        raise
    except (SettleError, OSError, MemoryError, RuntimeError) as e:
        error = _explained(e, context)
        if error is None:
            raise
        context.events.emit(RunFailed(what=error.what, fix=error.fix))
        if error is e:
            raise
        raise error from e
    return context


def _explained(error: Exception, context: Context) -> SettleError | None:
    """Return the error to report for one that ended a stage; None for a fault of our own."""
    full = disk_is_full(context.folder.path, f"then `settle resume {context.folder.name}` exports them")
    match error:
        case MemoryError() | RuntimeError() if (missing := missing_bytes(error)) is not None:
            return _out_of_memory(context, missing)
        case ResourceError() if context.safe:
            return ResourceError(f"{error.what}; {context.safe}", full.fix)
        case OSError() if error.errno in FULL_DISK and context.safe:
            return ResourceError(f"{full.what}; {context.safe}", full.fix)
        case SettleError():
            return error
    return None


def _out_of_memory(context: Context, missing: int) -> ResourceError:
    """Report that an allocator lacked `missing` bytes (0: it did not say) in the run's events, and return the error."""
    held = held_data()
    context.events.emit(OutOfMemory(held=held, missing=missing))
    wanted = f"{missing / 1e6:,.0f} MB" if missing else "memory"
    beside = f" beside the {held / 1e9:.2f} GB that it holds" if held else ""
    return ResourceError(f"out of memory: it could not get {wanted}{beside}", context.needs_less())


def sweep(run: Run) -> None:
    """Remove what a killed process left half-written; the lock guarantees that nobody is writing now."""
    in_out = [path for pattern in (".*.part", ".hf-*", ".unproven-*") for path in run.out.glob(pattern)]
    for path in [*run.path.glob(".*.part"), *run.path.glob(".work-*"), *in_out]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    run.out.mkdir(exist_ok=True)
    run.checkpoints.mkdir(exist_ok=True)


def interrupt(context: RunContext, saved: str, then: str = "continues from there") -> None:
    """End the session because it was stopped. saved: what of it is kept; then: what resuming the run does."""
    context.events.emit(Say(text=f"{saved}; `settle resume {context.run.name}` {then}"))
    context.exit_code = INTERRUPTED


def end_dry(context: Context, result: Mapping[str, object]) -> None:
    """End a session that was only to show what would be done."""
    context.events.emit(ResultReady(result=result))
    context.exit_code = 0


def version_before(context: RunContext, package: str, now: str) -> str:
    """Return the version of a package that the run began with; `now` for a new run, or where that is not known."""
    versions = (context.record or {}).get("versions")
    return str(versions.get(package, now)) if isinstance(versions, dict) else now


def require_same_data(context: RunContext, fingerprint: str) -> None:
    """Raise RunError when the data, prepared again, are not what plan.json names."""
    record, run = context.record, context.run
    if record is None or fingerprint == record["corpus"]:
        return
    begun_by = version_before(context, "settle", __version__)
    if begun_by != __version__:
        asked = [str(getattr(context.settings, key)) for key in context.settings.models]
        again = " ".join(
            [run.command, *asked, "--recipe", str(run.path / "recipe.toml"), "--name", f"{run.name}-again"]
        )
        raise RunError(
            f"{run.name} was begun by settle {begun_by}; {__version__} prepares the same data in another way",
            f"`settle {again}` starts it again; its folder stays",
        )
    raise RunError(
        f"the data has changed since the run began: corpus is {fingerprint}, it was {record['corpus']}",
        "restore the inputs, or start a new run",
    )


# --- resuming a run ---


def resume(name: str, events: Events) -> int:
    """To the end that the run would have had without the stop. Returns the exit code. Raises SettleError."""
    run = Run.find(name)
    with run.lock(), Stopping() as stopping:
        result = run.result()
        code = _resumed(run, events, stopping) if result is None else 0
    follower = _follower(job_of(run), run) if run.command else None
    if follower is None and result is not None:
        events.emit(Say(text=f"{run.name} is finished; there is nothing to resume"))
        events.emit(ResultReady(result=result.to_json()))
    return code if follower is None else _follow_up(*follower, run, events)


def _resumed(run: Run, events: Events, stopping: Stopping) -> int:
    """Follow the stages of a run that was stopped; return the exit code."""
    sweep(run)
    events.move_to(run.events)
    job = job_of(run)
    record = run.read("plan.json")
    if record is not None and not isinstance(record, dict):
        raise edited(run, "it is not an object")
    settings = asked_settings(job, run, record)
    if record is None:
        if "-" in settings.value.inputs:
            raise RunError(f"{run.name} read from stdin and was stopped before it had read it all", "start it again")
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
    known = {key: value for key, value in asked.items() if key in {*job.settings.model_fields, *job.settings.renamed}}
    try:
        return resolve(job.settings, [("plan.json", known)])
    except UsageError as e:
        raise edited(run, e.what) from None
