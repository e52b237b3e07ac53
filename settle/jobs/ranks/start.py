"""A job's run, alone or shared among the ranks of torchrun: rank 0 does its work, the others join it for the loop."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from settle.base.errors import SettleError
from settle.base.event_log import Events
from settle.base.events import Event, RunStarted, Say
from settle.base.run import Run
from settle.base.run.result import NOT_BETTER
from settle.base.stop_signals import Stopping
from settle.jobs.job import INTERRUPTED, follow, start_job
from settle.jobs.ranks.crew import joined
from settle.jobs.resume import asked_settings, job_of, resume
from settle.jobs.settings import JobSettings
from settle.machine.launcher import Launch, launched

LAST_WORD = 1.5  # seconds in which rank 0 says what is wrong: torchrun ends all ranks once one has ended
JOB_FILE = ".torchrun"  # in a run's folder: which start of torchrun began it


def start(job: str, settings: JobSettings, events: Events) -> int:
    """A new run to its end; the exit code. A run that the same torchrun began before it started its ranks again is
    resumed. Raises SettleError."""

    def begin() -> int:
        return start_job(job, settings, events).exit_code or 0

    launch = launched()
    if launch is None:
        return begin()
    asked = settings.with_recipe().value.model_dump(mode="json", exclude={"recipe"})
    return _shared(launch, {"job": job, **asked}, begin, events)


def resume_run(name: str, events: Events) -> int:
    """A run that was stopped, to its end, on as many ranks as there are now; the exit code. Raises SettleError."""
    launch = launched()
    if launch is None:
        return resume(name, events)
    return _shared(launch, {"resume": name}, lambda: resume(name, events), events)


def _shared(launch: Launch, asked: dict[str, object], begin: Callable[[], int], events: Events) -> int:
    """The work of this rank. torchrun takes any other exit code than 0 for a fault: so a model that is not better than
    its base is reported, and no exit code here."""
    if launch.size == 1:
        return _lead(launch, begin, events)
    if launch.rank == 0:
        with joined(launch, asked, events) as crew:
            try:
                return _lead(launch, begin, events)
            except SettleError as e:
                crew.fault(str(e))
                raise
    return _accompany(launch, asked)


def _lead(launch: Launch, begin: Callable[[], int], events: Events) -> int:
    """Begin the run, or resume it where torchrun has started its ranks again."""

    def note(event: Event) -> None:
        if isinstance(event, RunStarted):
            (Path(event.path) / JOB_FILE).write_text(launch.job, encoding="utf-8")

    events.listeners.append(note)
    begun = _begun_by(launch.job) if launch.restarts else None
    if begun is None:
        code = begin()
    else:
        text = f"torchrun has started the ranks again ({launch.restarts}): {launch.size} of them resume {begun.name}"
        events.emit(Say(text=text))
        code = resume(begun.path.name, events)
    return 0 if code == NOT_BETTER else code


def _begun_by(job: str) -> Run | None:
    """The run that an earlier start of the same torchrun made."""
    for run in reversed(Run.all()):
        note = run.path / JOB_FILE
        if note.exists() and note.read_text(encoding="utf-8") == job:
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
    """The stages up to the loop, of which every one finds its product in the run's folder."""
    job, record = job_of(run), run.read("plan.json")
    names = [stage.__name__ for stage in job.stages]
    until_loop = replace(job, stages=job.stages[: names.index("loop") + 1])
    settings = asked_settings(job, run, record)
    context = job.context(run, settings.value, settings.origin, Silent(), stopping, record)
    return follow(until_loop, context).exit_code or 0
