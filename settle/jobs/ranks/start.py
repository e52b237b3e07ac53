"""A job's run, alone or shared among the ranks of torchrun: rank 0 does its work, the others join it for the loop."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from settle.audit.session import is_fenced
from settle.base.errors import SettleError, UsageError
from settle.base.event_log import Events
from settle.base.events import AnswerText, Event, ResultReady, RunStarted, Say
from settle.base.run import Run
from settle.base.run.launcher import Launch, launched
from settle.base.run.result import NOT_BETTER
from settle.base.stop_signals import Stopping
from settle.jobs.job import INTERRUPTED, asked_settings, find_job, follow, job_of, resume, start
from settle.jobs.ranks.crew import joined
from settle.jobs.ranks.launch_script import script
from settle.jobs.seeds import repeat
from settle.jobs.settings import TrainSettings, TuneSettings

LAST_WORD = 1.5  # seconds in which rank 0 says what is wrong: torchrun ends all ranks once one has ended
JOB_FILE = ".torchrun"  # in a run's folder: which start of torchrun began it


def start_run(job: str, settings: TrainSettings | TuneSettings, events: Events) -> int:
    """Make a new run, or several where `--seeds` asks for them, and return the exit code.

    A run that the same torchrun began before it started its ranks again is resumed. Raises SettleError.
    """
    launch, whole = launched(), settings.with_recipe().value
    if whole.launch is not None:
        return _write_script(job, settings, whole.launch, events)
    if launch is None and whole.seeds > 1 and not whole.dry:
        return repeat(job, whole, events)
    if launch is None:
        return start(find_job(job), settings, events).exit_code or 0
    if whole.seeds > 1:
        raise UsageError("--seeds makes one run after the other, each in one process", "start it without torchrun")
    asked = {"job": job, **whole.model_dump(mode="json", exclude={"recipe"})}
    return _shared(launch, asked, lambda: start(find_job(job), settings, events).exit_code or 0, events)


def _write_script(job: str, settings: TrainSettings | TuneSettings, kind: str, events: Events) -> int:
    """Forecast the run here, and print the script that starts it elsewhere."""
    found: dict[str, object] = {}

    def pass_on(event: Event) -> None:
        if isinstance(event, ResultReady):
            found.update(event.result)
        else:
            events.emit(event)

    start(find_job(job), settings.model_copy(update={"dry": True}), Events(listeners=[pass_on]))
    forecast = found.get("forecast")
    figures = {**(forecast if isinstance(forecast, Mapping) else {}), "rank_memory": found.get("rank_memory")}
    text = script(kind, job, settings.with_recipe().value, figures)
    events.emit(AnswerText(text=text))
    events.emit(ResultReady(result={**found, "script": text}))
    return 0


def resume_run(name: str, events: Events) -> int:
    """Resume a run that was stopped, on as many ranks as there are now; return the exit code. Raises SettleError."""
    launch = launched()
    if launch is None:
        return resume(name, events)
    return _shared(launch, {"resume": name}, lambda: resume(name, events), events)


def _shared(launch: Launch, asked: dict[str, object], begin: Callable[[], int], events: Events) -> int:
    """Do the work of this rank, and return its exit code.

    For torchrun any other exit code than 0 is a fault: so a model that is not better than its base is reported, and
    returns 0.
    """
    key = f"{launch.job} {hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()}"
    if launch.size == 1:
        return _lead(launch, key, begin, events)
    if is_fenced():
        raise UsageError(
            "--offline gives each rank an empty network of its own, in which the ranks cannot meet",
            "leave it out: each rank's ledger shows what it connects to",
        )
    if launch.rank == 0:
        with joined(launch, asked, events) as crew:
            try:
                return _lead(launch, key, begin, events)
            except SettleError as e:
                crew.fault(str(e))
                raise
    return _accompany(launch, asked)


def _lead(launch: Launch, key: str, begin: Callable[[], int], events: Events) -> int:
    """Begin the run, or resume it where torchrun has restarted its ranks, or a scheduler its job.

    key: of what is to be done.
    """

    def note(event: Event) -> None:
        if isinstance(event, RunStarted):
            (Path(event.path) / JOB_FILE).write_text(key, encoding="utf-8")

    events.listeners.append(note)
    begun = _begun(key)
    if begun is None or (begun.result() is not None and not launch.restarts):
        code = begin()
    else:
        text = f"the job was started again: {launch.size} ranks resume {begun.name}"
        events.emit(Say(text=text))
        code = resume(begun.path.name, events)
    return 0 if code == NOT_BETTER else code


def _begun(key: str) -> Run | None:
    """Return the run that an earlier start of this job made."""
    for run in reversed(Run.all()):
        note = run.path / JOB_FILE
        if note.exists() and note.read_text(encoding="utf-8") == key:
            return run
    return None


class Silent(Events):
    """Rank 0 speaks for all."""

    def emit(self, event: Event) -> None:
        return

    def move_to(self, path: Path) -> None:
        return


def _accompany(launch: Launch, asked: dict[str, object]) -> int:
    """Another rank's work: the loop of the run that rank 0 makes. It says nothing; its faults are in a file."""
    try:
        with joined(launch, asked, Silent()) as crew, Stopping() as stopping:
            try:
                run = crew.wait_for_run()
                return 0 if run is None else _take_part(run, stopping)
            except SettleError as e:
                crew.refuse(e)
                time.sleep(LAST_WORD)
                return e.exit_code
    except SettleError as e:  # it could not join: rank 0 meets the same
        time.sleep(LAST_WORD)
        return e.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


def _take_part(run: Run, stopping: Stopping) -> int:
    """Run the stages up to the loop, of which every one finds its product in the run's folder."""
    job, record = job_of(run), run.read("plan.json")
    names = [stage.__name__ for stage in job.stages]
    until_loop = replace(job, stages=job.stages[: names.index("loop") + 1])
    settings = asked_settings(job, run, record)
    context = job.context(run, settings.value, Silent(), stopping, origin=settings.origin, record=record)
    return follow(until_loop, context).exit_code or 0
