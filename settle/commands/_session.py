"""What every command shares that makes a run: begin a folder, go on to the end, hand over, tell what was used."""

import errno
import shutil
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field

from settle.base.errors import ResourceError, RunError, UsageError
from settle.base.event_log import Events
from settle.base.events import Eval, ResultReady, RunStarted, Say
from settle.base.result import Result
from settle.base.run import Run, free_name, write_atomic, write_json
from settle.base.settings import read_recipe, recipe_text, resolve
from settle.base.stop_signals import Stopping
from settle.commands import Command

if TYPE_CHECKING:
    from settle.infer.engine import Engine
    from settle.plan.training_job import TrainingJob
    from settle.plan.training_plan import TrainingPlan
    from settle.train.state import Outcome

Spent = Callable[[], dict[str, float]]  # of all sessions up to now: seconds, joules, peak_memory


class RunCommand(Command):
    """A command that makes a run. `settle resume` finds it by the name in the run's folder."""

    inputs: list[str] = Field([], description="files, folders, - or stdlib")
    name: str | None = Field(None, description="name of the run; from the first input when not given")
    recipe: Path | None = Field(None, description="settings from a TOML file; the command line goes before it")
    dry: bool = Field(False, description="show the plan and the forecast, run nothing")

    @abstractmethod
    def start(self, run: Run, origin: dict[str, str], stopping: Stopping, events: Events) -> int:
        """Data, plan, forecast and proof of a new run; then the loop. With `dry` it ends after the forecast.

        plan.json is written when all of that is done: a run without one has not begun.
        """

    @abstractmethod
    def corpus(self, events: Events) -> Any:
        """The data of these settings, made again or found as it was."""

    @classmethod
    @abstractmethod
    def stored_corpus(cls, record: dict[str, Any]) -> Any:
        """The data that plan.json names, or None when it was deleted."""

    @classmethod
    @abstractmethod
    def finish(cls, run: Run, job: "TrainingJob", outcome: "Outcome", spent: Spent, events: Events) -> dict[str, Any]:
        """Hand over what the run made, and write its result last."""

    def run(self, events: Events) -> int:
        settings, origin = self._resolved()
        settings.check()
        name = settings.name or free_name(name_of(settings.inputs[0]))
        run = Run.create(self.command_name(), name)
        events.emit(RunStarted(name=name, path=str(run.path)))
        with run.lock(), Stopping() as stopping:
            try:
                write_atomic(run.path / "recipe.toml", recipe_text(settings._asked()))
                return settings.start(run, origin, stopping, events)
            finally:
                if not (run.path / "plan.json").exists():
                    shutil.rmtree(run.path)  # nothing was begun that could be gone on with

    def check(self) -> None:
        """Raises UsageError for what cannot be begun."""
        if not self.inputs:
            command = self.command_name()
            raise UsageError(f"there is nothing to {command} on", f"give files or folders: `settle {command} ~/notes`")

    @classmethod
    def command_name(cls) -> str:
        return cls.__module__.rsplit(".", 1)[-1]

    def _resolved(self) -> tuple[Self, dict[str, str]]:
        layers = [("asked", self.model_dump(exclude_unset=True))]
        if self.recipe:
            layers.insert(0, ("recipe", read_recipe(self.recipe)))
        resolved = resolve(type(self), layers)
        return resolved.value, resolved.origin

    def _asked(self) -> dict[str, Any]:
        """What recipe.toml keeps: all that was given, with paths that hold from any folder."""
        kept = self.model_dump(exclude_unset=True, exclude={"recipe", "dry"}, mode="json")
        paths = {i: Path(i).expanduser().absolute() for i in self.inputs}
        return kept | {"inputs": [str(path) if path.exists() else given for given, path in paths.items()]}


def go_on(
    command: type[RunCommand],
    run: Run,
    job: "TrainingJob",
    spending: "Spending",
    stopping: Stopping,
    events: Events,
) -> int:
    """Loop and hand-over; also what `settle resume` calls. Returns the exit code."""
    loop = job.loop(run, events, stopping, spending)
    with stopping.patiently():
        outcome = loop.train()
    if outcome.interrupted or stopping():
        saved = f"saved at step {loop.saved_step:,}" if loop.saved_step >= 0 else "stopped"
        events.emit(Say(text=f"{saved}; `settle resume {run.name}` goes on from there"))
        return 130
    try:
        result = command.finish(run, job, outcome, loop.spent, events)
    except (ResourceError, OSError) as e:
        if isinstance(e, OSError) and e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        what = e.what if isinstance(e, ResourceError) else f"the disk of {run.path} is full"
        raise ResourceError(
            f"{what}; the trained weights are safe", f"make room, then `settle resume {run.name}` hands them over"
        ) from None
    events.emit(ResultReady(result=result))
    if result["verdict"] in ("diverged", "broken"):
        return 1
    return 3 if result.get("comparison", {}).get("verdict", "better") != "better" else 0


def judged(
    run: Run, job: "TrainingJob", outcome: "Outcome", spent: Spent, events: Events
) -> tuple[dict[str, Any], dict[str, Any]]:
    """plan.json, and what of the result is known before anything is handed over. What was spent is told after the last
    look: a forecast counts that too."""
    from settle.plan.forecast import cost
    from settle.train.verdict import verdict

    state, record = outcome.state, run.read("plan.json")
    prices = record["asked"]["price_per_kwh"], record["asked"]["price_per_hour"]
    tokens = state.step * job.plan.loop.tokens_per_step
    best = job.judge(outcome.best, state)
    events.emit(Eval.model_validate({"whole": True, **best}))
    used = spent()
    result: dict[str, Any] = {
        "name": run.name,
        **verdict(state, job.plan.loop, tokens / max(state.seconds, 1e-9)),
        "best": best,
        "actual": {
            "time": used["seconds"],
            "peak_memory": used["peak_memory"],
            "energy": used["joules"],
            "cost": cost(used["joules"], used["seconds"], *prices),
            "tokens": tokens,
            "loss": best["loss"],
        },
        "forecast": run.read("forecast.json"),
        "proof": record.get("proof"),
        "files": {"card": str(run.out / "card.md"), "curves": str(run.out / "curves.png")},
    }
    return record, result


def write_result(
    run: Run, job: "TrainingJob", record: dict[str, Any], result: dict[str, Any], compared: Sequence[str] = ()
) -> None:
    """Card, picture, and result.json last: its presence means that the run is finished. compared: lines for the card
    on how the model does against its base.
    """
    from settle.evaluate.report.card import write_card
    from settle.evaluate.report.curves import draw_curves

    record["num_parameters"] = job.architecture.num_parameters
    write_card(run.out / "card.md", run.name, record, result, job.corpus.ledger, compared)
    draw_curves(run, Result.model_validate(result))
    write_json(run.path / "result.json", result)


class Spending:
    """What this session has used so far: seconds, joules, and the most memory, in bytes."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def start(self, device: str, watts: float | None) -> None:
        """From here on energy is counted and memory watched, now that the device is known.

        `watts`: what the machine draws, when the person says so.
        """
        from settle.machine import EnergyMeter, PeakMemory

        self._meter, self._peak = EnergyMeter(watts, device).start(), PeakMemory(device).start()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def __call__(self) -> dict[str, float]:
        return {"seconds": self.seconds, "joules": self._meter.read().joules, "peak_memory": self._peak.read()}


class FinishedRun:
    """What `settle.train` returns: the verdict, the result, and a way to ask the model."""

    def __init__(self, run: Run) -> None:
        self.path = run.path
        self.name = run.name
        self.result: dict[str, Any] = run.read("result.json")
        if self.result is None:
            raise RunError(f"{run.name} is not finished", f"`settle resume {run.name}` goes on with it")

    @classmethod
    def find(cls, name: str) -> "FinishedRun":
        return cls(Run.find(name))

    @property
    def verdict(self) -> str:
        """settled, out of budget, overfitting, diverged or broken."""
        return str(self.result["verdict"])

    def generate(self, prompt: str, max_tokens: int = 128, temperature: float = 0.8, seed: int = 0) -> str:
        """The model's answer to `prompt`, or its continuation, by the exported file in llama.cpp."""
        return "".join(self.stream(prompt, max_tokens, temperature, seed))

    def stream(self, prompt: str, max_tokens: int = 128, temperature: float = 0.8, seed: int = 0) -> Iterator[str]:
        """`generate`, piece by piece."""
        from settle.infer.engine import Engine
        from settle.library.resolve import resolve_gguf

        model = resolve_gguf(f"run:{self.path.name}")
        with Engine(model.weights, adapter=model.adapter) as engine:
            yield from engine.complete(asked(engine, prompt), max_tokens=max_tokens, temperature=temperature, seed=seed)


def asked(engine: "Engine", prompt: str) -> list[int]:
    """Ids of a prompt: a question where the model takes turns, otherwise a text to go on with."""
    return engine.turns([{"role": "user", "content": prompt}]) if engine.takes_turns else engine.plain(prompt)


def make_quietly(command: type[RunCommand], inputs: list[str], settings: dict[str, Any]) -> FinishedRun:
    """A command without a face. Raises SettleError."""
    resolved = resolve(command, [("asked", {"inputs": inputs, **settings})]).value
    if resolved.dry:
        raise UsageError("dry=True makes no run", f"use `settle {command.command_name()} --dry`")
    return run_quietly(command(**resolved.model_dump(exclude_unset=True)))


def run_quietly(command: Command) -> FinishedRun:
    """What a command made, without a face. Raises SettleError."""
    heard: list[str] = []
    events = Events(listeners=[lambda e: heard.append(e.path) if isinstance(e, RunStarted) else None])
    try:
        command.run(events)
    finally:
        events.close()
    return FinishedRun(Run(Path(heard[-1])))


def name_of(source: str) -> str:
    return "stdin" if source == "-" else Path(source).expanduser().resolve().stem if source != "stdlib" else source


def record_of(plan: "TrainingPlan", settings: RunCommand, corpus: Any) -> dict[str, Any]:
    """plan.json: the plan, what was asked, versions, machine, and hashes of what it stands on."""
    import importlib.metadata

    from settle.base.version import __version__
    from settle.machine import describe

    packages = ("torch", "numpy", "tokenizers", "safetensors", "gguf", "xllamacpp")
    return {
        **plan.to_json(),
        "asked": settings.model_dump(mode="json"),
        "corpus": corpus.fingerprint,
        "versions": {"settle": __version__, **{p: importlib.metadata.version(p) for p in packages}},
        "machine": describe(),
    }
