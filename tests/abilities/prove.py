"""`prove(subject, ability)`: what settle does for a family, done for its smallest model, or the reason why not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from settle.base.errors import FormatError, GateError, UsageError
from settle.base.event_log import Events
from settle.base.events import Event, Step
from settle.base.files import write_json
from settle.base.run import Run, free_name
from settle.base.stop_signals import Stopping
from settle.evaluate.gate.behaviour import CONVERSATIONS, Effort
from settle.evaluate.gate.export import ExportedModel, export_model
from settle.formats.gguf import Gguf
from settle.jobs import train, tune
from settle.jobs.job import INTERRUPTED, RunJob
from settle.jobs.training_stages import TrainingContext
from settle.train.checkpoint import load_newest
from tests.abilities.subject import Subject

STEPS, STOP = 4, 2
WORKS = "works"
MEASURING = ("probe", "forecast", "judging")  # stages that time this machine, or say what rows can show
QUICK: dict[str, Any] = {"steps": STEPS, "dtype": "float32", "threads": 1}
LEAST = Effort(num_texts=4, num_prompts=2, num_greedy=8, num_windows=2, conversations=CONVERSATIONS[:1])
ABILITIES: dict[str, Callable[[Subject], None]] = {}


def ability(name: str) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Register what tries an ability: it fails where a result is wrong, and raises what settle refuses with."""

    def register(tries: Callable[[Subject], None]) -> Callable[[Subject], None]:
        ABILITIES[name] = tries
        return tries

    return register


def prove(subject: Subject, name: str) -> str:
    """Try an ability; return "works", or "refused: " and the words by which settle refuses it."""
    try:
        ABILITIES[name](subject)
    except (UsageError, FormatError) as e:
        return f"refused: {e.what}"
    return WORKS


# --- training ---


def session(job: RunJob[Any], run: Run, asked: Any, stop: int | None = None) -> TrainingContext:
    """Follow a job's stages to the end of its loop, or resume it. stop: the step after which it is asked to stop."""
    context = job.context(run, asked, Events(), Stopping(), record=run.read("plan.json"))

    def ask(event: Event) -> None:
        context.stopping.asked |= isinstance(event, Step) and event.step == stop

    context.events.listeners.append(ask)
    context.spending.start("cpu", 1.0)
    names = [stage.__name__ for stage in job.stages]
    for stage in job.stages[: names.index("loop") + 1]:
        if stage.__name__ == "start":  # of a model from nothing: the forecast belongs to it
            train.build(context)
        elif stage.__name__ not in MEASURING:
            stage(context)
    return context


def learns(job: RunJob[Any], asked: Any) -> Run:
    """Prove and train: the loss of the first step's rows falls."""
    run = new_run(job)
    context = session(job, run, asked)
    live, first = context.live, context.outcome.state.train_losses[0]
    with torch.no_grad():
        total, count = live.objective.batch_loss(live.model, live.batches.at(0))
    assert float(total) / count < first, "the loss does not fall"
    return run


def resumes(job: RunJob[Any], asked: Any) -> None:
    """Prove and train, then the same plan with a stop on the way: both end with the same bits."""
    whole = learns(job, asked)
    stopped = new_run(job)
    write_json(stopped.path / "plan.json", whole.read("plan.json"))  # as one that was stopped before its first step
    assert session(job, stopped, asked, STOP).exit_code == INTERRUPTED
    session(job, stopped, asked)
    ends = [load_newest(run.checkpoints, Events()) for run in (whole, stopped)]
    assert all(end is not None and end.state["step"] == STEPS for end in ends)
    one, other = (end.model for end in ends if end is not None)
    differing = [name for name, weight in one.items() if not torch.equal(weight, other[name])]
    assert one and one.keys() == other.keys() and not differing, f"resumed, {differing[:1]} is another"


def new_run(job: RunJob[Any]) -> Run:
    return Run.create(job.name, free_name("run"))


@ability("train")
def trains(subject: Subject) -> None:
    """From nothing, in the family's own shape for a size."""
    shape = {"architecture": subject.family, "size": "40k", "context": 32, "batch_tokens": 256}
    asked = train.JOB.settings(inputs=[str(subject.text.plain)], data=subject.text.reading, **shape, **QUICK)
    resumes(train.JOB, asked)


def tuning(model: Path, subject: Subject, adapter: str, **settings: Any) -> Any:
    """Return the settings of a tuning of a model."""
    chosen = {"name": adapter} | ({} if adapter == "full" else {"rank": 4})
    more = {"adapter": chosen, "optimizer": {"name": "adamw", "lr": 3e-3 if adapter == "full" else 2e-2}}
    inputs = [str(subject.text.rows)]
    return tune.JOB.settings(model=str(model), inputs=inputs, batch_rows=4, **more, **QUICK, **settings)


@ability("full")
def tunes_every_weight(subject: Subject) -> None:
    resumes(tune.JOB, tuning(subject.hf, subject, "full"))


@ability("lora")
def tunes_lora(subject: Subject) -> None:
    resumes(tune.JOB, tuning(subject.hf, subject, "lora"))


@ability("dora")
def tunes_dora(subject: Subject) -> None:
    learns(tune.JOB, tuning(subject.hf, subject, "dora"))


@ability("nf4")
def tunes_over_nf4(subject: Subject) -> None:
    learns(tune.JOB, tuning(subject.hf, subject, "lora", quantize="nf4"))


@ability("as-is")
def tunes_over_blocks_of_a_file(subject: Subject) -> None:
    learns(tune.JOB, tuning(subject.gguf("q8_0"), subject, "lora", quantize="as-is"))


# --- files ---


@ability("gate")
def exports(subject: Subject) -> None:
    """A file equals the model, and one with another tensor in it is refused."""
    part, weights, tokenizer = subject.part, subject.weights, subject.text.tokenizer
    model = part.skeleton("cpu")
    model.load_state_dict(dict(weights))
    path, texts = subject.folder / "model.gguf", [subject.text.plain.joinpath("0.txt").read_text()]
    exported = ExportedModel("model", model, part, weights, tokenizer, texts)
    figures = export_model(exported, Gguf(dtype="f32"), path, LEAST)
    assert figures and figures["passed"] and figures["first_difference"] is None
    name = next(n for n, weight in weights.items() if ".layers." in n and weight.ndim == 2)
    other = ExportedModel("other", model, part, {**weights, name: weights[name].roll(1, 0)}, tokenizer, texts)
    path.unlink()
    with pytest.raises(GateError, match="does not behave like the trained model"):
        export_model(other, Gguf(dtype="f32"), path, LEAST)
    assert not path.exists()
