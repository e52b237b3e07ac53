"""settle train: from text to a settled model that answers."""

import errno
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from settle.base.errors import ResourceError, RunError, UsageError
from settle.base.events import Events
from settle.base.run import Run, free_name, write_atomic, write_json
from settle.base.settings import read_recipe, resolve
from settle.commands import Command
from settle.plan.settings import TrainingSettings
from settle.train.stopping import Stopping

if TYPE_CHECKING:
    from settle.data.prepare import Corpus
    from settle.plan.training import TrainingPlan
    from settle.plan.training_job import TrainingJob
    from settle.train.loop import Outcome


class Train(TrainingSettings, Command):
    """Train a model from your own text until it has settled.

    INPUTS are files or folders of text (md, txt, rst, html, code, jsonl, json, csv, parquet, also .gz and .zst), `-`
    for stdin, or `stdlib` for Python's own standard library. `--dry` shows the plan and the forecast, and stops.
    """

    positional: ClassVar[tuple[str, ...]] = ("inputs",)

    inputs: list[str] = Field([], description="files, folders, - or stdlib")
    name: str | None = Field(None, description="name of the run; from the first input when not given")
    recipe: Path | None = Field(None, description="settings from a TOML file; the command line goes before it")
    dry: bool = Field(False, description="show the plan and the forecast, run nothing")

    def run(self, events: Events) -> int:
        settings, origin = self._resolved()
        if not settings.inputs:
            raise UsageError("there is nothing to train on", "give files or folders: `settle train ~/notes`")
        name = settings.name or free_name(_name_of(settings.inputs[0]))
        run = Run.create("train", name)
        events.emit("run", name=name, path=str(run.path))
        with run.lock(), Stopping() as stopping:
            try:
                write_atomic(run.path / "recipe.toml", to_toml(_asked(settings)))
                return start(run, settings, origin, stopping, events)
            finally:
                if not (run.path / "plan.json").exists():
                    shutil.rmtree(run.path)  # nothing was begun that could be gone on with

    def _resolved(self) -> tuple["Train", dict[str, str]]:
        layers = [("asked", self.model_dump(exclude_unset=True))]
        if self.recipe:
            layers.insert(0, ("recipe", read_recipe(self.recipe)))
        resolved = resolve(Train, layers)
        return resolved.value, resolved.origin


def start(run: Run, settings: Train, origin: dict[str, str], stopping: "Stopping", events: Events) -> int:
    """Data, plan, forecast and proof of a new run; then the loop. With `dry` it ends after the forecast.

    plan.json is written when all of that is done: a run without one has not begun.
    """
    spending = Spending()
    from settle.data.prepare import prepare

    corpus = prepare(settings.inputs, settings.data, events)
    from settle.plan.forecast import look_ahead
    from settle.plan.training import plan_training
    from settle.plan.training_job import TrainingJob
    from settle.train.proof import prove

    plan = plan_training(settings, origin, corpus, spending.seconds)
    events.emit("plan", values=_told(plan, settings), origin=plan.origin, why=plan.why, full=settings.dry)
    plan, expected = look_ahead(plan, corpus, settings, lambda: spending.seconds, events)
    events.emit("forecast", forecast=expected.to_json())
    if settings.dry:
        events.emit("result", result={"plan": plan.to_json(), "forecast": expected.to_json()})
        return 0
    job = TrainingJob.build(plan, corpus)
    spending.start(plan.device, settings.watts)
    write_json(run.path / "forecast.json", expected.to_json())
    events.move_to(run.events)
    first, vocab_size = job.batches.at(0), corpus.tokenizer.vocab_size
    rows = [f"{corpus.train.origin(d)}, tokens {a} to {b}" for d, a, b in job.batches.rows_of(0)]
    proof = prove(job.model, job.objective, first, vocab_size, rows, events, plan.loop.seed)
    write_json(run.path / "plan.json", _record(plan, settings, corpus) | {"proof": proof})
    return go_on(run, job, spending, stopping, events)


def go_on(run: Run, job: "TrainingJob", spending: "Spending", stopping: "Stopping", events: Events) -> int:
    """Loop and hand-over; also what `settle resume` calls. Returns the exit code."""
    loop = job.loop(run, events, stopping, spending)
    with stopping.patiently():
        outcome = loop.train()
    if outcome.interrupted or stopping():
        saved = f"saved at step {loop.saved_step:,}" if loop.saved_step >= 0 else "stopped"
        events.emit("say", text=f"{saved}; `settle resume {run.name}` goes on from there")
        return 130
    try:
        result = finish(run, job, outcome, loop.spent(), events)
    except (ResourceError, OSError) as e:
        if isinstance(e, OSError) and e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        what = e.what if isinstance(e, ResourceError) else f"the disk of {run.path} is full"
        raise ResourceError(
            f"{what}; the trained weights are safe", f"make room, then `settle resume {run.name}` hands them over"
        ) from None
    events.emit("result", result=result)
    return 1 if result["verdict"] in ("diverged", "broken") else 0


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


def finish(run: Run, job: "TrainingJob", outcome: "Outcome", spent: dict[str, float], events: Events) -> dict[str, Any]:
    """Hand over what the run made, and write its result last."""
    from settle.evaluate.card import write_card
    from settle.evaluate.curves import draw_curves
    from settle.evaluate.gate import held_out_texts
    from settle.evaluate.hand_over import hand_over
    from settle.plan.forecast import cost
    from settle.train.verdict import verdict

    state, record = outcome.state, run.read("plan.json")
    prices = record["asked"]["price_per_kwh"], record["asked"]["price_per_hour"]
    speed = state.step * job.plan.loop.tokens_per_step / max(state.seconds, 1e-9)
    best = job.judge(outcome.best, state)
    events.emit("eval", whole=True, **best)
    result: dict[str, Any] = {
        "name": run.name,
        **verdict(state, job.plan.loop, speed),
        "best": best,
        "actual": {
            "time": spent["seconds"],
            "peak_memory": spent["peak_memory"],
            "energy": spent["joules"],
            "cost": cost(spent["joules"], spent["seconds"], *prices),
            "tokens": state.step * job.plan.loop.tokens_per_step,
            "loss": best["loss"],
        },
        "forecast": run.read("forecast.json"),
        "proof": record.get("proof"),
        "files": {"card": str(run.out / "card.md"), "curves": str(run.out / "curves.png")},
    }
    if result["verdict"] not in ("diverged", "broken"):
        files, gate = hand_over(
            job.model,
            job.architecture,
            outcome.best,
            job.corpus.tokenizer,
            run.out,
            run.name,
            held_out_texts(job.corpus.held_out, job.corpus.tokenizer),
            {"base": True, "verdict": result["verdict"], **result["best"]},
            events,
        )
        result |= {"files": files | result["files"], "gate": gate}
    record["num_parameters"] = job.architecture.num_parameters
    write_card(run.out / "card.md", run.name, record, result, job.corpus.ledger)
    draw_curves(run, result)
    write_json(run.path / "result.json", result)
    return result


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
        """The model's continuation of `prompt`, by the exported file in llama.cpp."""
        return "".join(self.stream(prompt, max_tokens, temperature, seed))

    def stream(self, prompt: str, max_tokens: int = 128, temperature: float = 0.8, seed: int = 0) -> Iterator[str]:
        """`generate`, piece by piece."""
        from settle.infer.engine import Engine

        with Engine(Path(self.result["files"]["gguf"])) as engine:
            yield from engine.complete(prompt, max_tokens=max_tokens, temperature=temperature, seed=seed)


def train_quietly(inputs: list[str], settings: dict[str, Any]) -> FinishedRun:
    """`settle train` without a face. Raises SettleError."""
    resolved = resolve(Train, [("asked", {"inputs": inputs, **settings})]).value
    if resolved.dry:
        raise UsageError("settle.train(dry=True) makes no run", "use `settle train --dry`")
    heard: list[str] = []
    events = Events(listeners=[lambda e: heard.append(str(e.get("path"))) if e["kind"] == "run" else None])
    try:
        Train(**resolved.model_dump(exclude_unset=True)).run(events)
    finally:
        events.close()
    return FinishedRun(Run(Path(heard[-1])))


def to_toml(values: dict[str, Any]) -> str:
    """Settings as TOML: plain values first, then a table a group."""
    plain = [f"{key} = {_toml(value)}" for key, value in values.items() if not isinstance(value, dict)]
    groups = [
        f"\n[{key}]\n" + "\n".join(f"{k} = {_toml(v)}" for k, v in value.items() if v is not None)
        for key, value in values.items()
        if isinstance(value, dict) and value
    ]
    return "\n".join([*plain, *groups]) + "\n"


def _asked(settings: Train) -> dict[str, Any]:
    """What recipe.toml keeps: all that was given, with paths that hold from any folder."""
    kept = settings.model_dump(exclude_unset=True, exclude={"recipe", "dry"}, mode="json")
    paths = {i: Path(i).expanduser().absolute() for i in settings.inputs}
    return kept | {"inputs": [str(path) if path.exists() else given for given, path in paths.items()]}


def _toml(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)


def _name_of(source: str) -> str:
    return "stdin" if source == "-" else Path(source).expanduser().resolve().stem if source != "stdlib" else source


def _told(plan: "TrainingPlan", settings: Train) -> dict[str, Any]:
    """What the plan's table shows."""
    loop = plan.loop
    architecture = {k: v for k, v in plan.architecture.items() if not k.endswith("_token_id")}
    return {
        **settings.model_dump(mode="json", exclude={"dry", "recipe"}),
        "parameters": plan.num_parameters,
        "device": plan.device,
        "dtype": plan.dtype,
        "context": loop.sequence_length,
        "batch_tokens": loop.tokens_per_step,
        "threads": loop.threads,
        "warmup_steps": loop.warmup_steps,
        "held_out_tokens": plan.held_out_tokens,
        "model": architecture,
        "rates": plan.optimizer,
    }


def _record(plan: "TrainingPlan", settings: Train, corpus: "Corpus") -> dict[str, Any]:
    """plan.json: the plan, what was asked, versions, machine, and hashes of what it stands on."""
    import importlib.metadata

    from settle import __version__
    from settle.machine import describe

    packages = ("torch", "numpy", "tokenizers", "safetensors", "gguf", "xllamacpp")
    return {
        **plan.to_json(),
        "asked": settings.model_dump(mode="json"),
        "corpus": corpus.fingerprint,
        "versions": {"settle": __version__, **{p: importlib.metadata.version(p) for p in packages}},
        "machine": describe(),
    }
