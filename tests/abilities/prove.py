"""`prove(subject, ability)`: what settle does for a family, done for its smallest model, or the reason why not."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from settle.base.chat_template import ChatTemplate
from settle.base.errors import FormatError, GateError, UsageError
from settle.base.event_log import Events
from settle.base.events import Event, Step
from settle.base.files import write_json
from settle.base.run import Run, free_name
from settle.base.stop_signals import Stopping
from settle.data.decisions.prompt import DECISION_TYPE, DecisionEncoder, DecisionPrompt, all_labels
from settle.data.decisions.questions import Question
from settle.data.decisions.rows import DecisionRow
from settle.data.likelihoods import Windows
from settle.evaluate.gate.behaviour import CONVERSATIONS, Effort, compare_greedy
from settle.evaluate.gate.decision_gate import DecisionGate
from settle.evaluate.gate.export import ExportedModel, export_model, shrunk_gate
from settle.formats.gguf import Gguf, export_gguf
from settle.formats.gguf.decision import DecisionKeys
from settle.formats.gguf.types import ggml_type
from settle.infer.child_process import Draft
from settle.infer.engine import Engine
from settle.infer.live_sampling import logprobs
from settle.infer.token_reader import TokenReader
from settle.jobs import distill, train, tune, tune_decision
from settle.jobs.job import INTERRUPTED, RunJob
from settle.jobs.training_stages import TrainingContext
from settle.library.reference import ModelRef
from settle.model.pretrained import Pretrained
from settle.model.source import Source
from settle.shrink.calibration import CalibrationData
from settle.shrink.candidates import Candidates
from settle.shrink.quantizers import Quantizer
from settle.shrink.session import MeasuredModel, Session
from settle.train.checkpoint import load_newest
from settle.train.objectives.decision import Decision
from settle.train.objectives.next_token import NextToken
from tests.abilities.subject import Subject
from tests.model.architectures.test_activation_bytes import kept_bytes
from tests.model.test_llama import packed

STEPS, STOP = 4, 2
WORKS = "works"
MEASURING = ("probe", "forecast", "judging")  # stages that time this machine, or say what rows can show
QUICK: dict[str, Any] = {"steps": STEPS, "dtype": "float32", "threads": 1}
TURN = CONVERSATIONS[:1]
LEAST = Effort(
    num_texts=4,
    num_prompts=2,
    num_greedy=2,
    num_windows=2,
    window=64,
    num_logprobs=1 << 13,
    conversations=CONVERSATIONS[:1],
)
ANSWERS = Effort(num_prompts=3, num_greedy=12)
MOST_FLOPS = 2.5  # times what is said
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
    assert float(total) / count < first, f"the loss does not fall: {first:.4f}, {float(total) / count:.4f}"
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
    rate = 3e-3 if adapter == "full" else 2e-2
    own = {"inputs": [str(subject.text.rows)], "batch_rows": 4, "optimizer": {"name": "adamw", "lr": rate}}
    return tune.JOB.settings(model=str(model), adapter=chosen, **QUICK, **own | settings)


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


def distilled(subject: Subject, **settings: Any) -> Any:
    """Return the settings of a student of the model."""
    more = {"rows": {"piece_tokens": 32}, "optimizer": {"name": "adamw", "lr": 1e-3}}
    return distill.JOB.settings(teacher=str(subject.hf), inputs=[str(subject.text.plain)], **more, **settings, **QUICK)


@ability("distill")
def distills(subject: Subject) -> None:
    """Into a smaller model of the family."""
    resumes(distill.JOB, distilled(subject, student=str(subject.student)))


@ability("prune depth")
def prunes_depth(subject: Subject) -> None:
    """One layer less, which then learns from the whole model."""
    learns(distill.JOB, distilled(subject, drop_layers=1))


@ability("prune width")
def prunes_width(subject: Subject) -> None:
    learns(distill.JOB, distilled(subject, width=0.5))


@ability("forecast")
def is_forecast(subject: Subject) -> None:
    """What a step keeps in memory is what is said, and its products are no fewer, and few are left out."""
    part, rows, length = subject.part, (8, 4), 32
    model, numbers = part.build(0), part.vocab_size
    more, less = (kept_bytes(model, number, numbers) for number in rows)
    said = part.activation_bytes_per_token(length, 4) * length * (rows[0] - rows[1])
    assert more - less == said, f"{more - less:,} bytes, {said:,.0f} are said"
    inputs, targets, bounds = packed([length] * rows[0], numbers)
    with FlopCounterMode(display=False) as counter:
        NextToken().loss(model, inputs, targets.abs(), bounds)[0].backward()
    said = part.flops_per_token(length) * length * rows[0]
    # attention computes what a token may not see as well, and a recurrence is computed in chunks
    assert said <= counter.get_total_flops() <= MOST_FLOPS * said, f"{counter.get_total_flops():,} operations, {said:,}"


# --- files and answers ---


@ability("shrink")
def shrinks(subject: Subject) -> None:
    """Into one of llama.cpp's mixes, by the importance and cost of each tensor; through the gate."""
    source = Pretrained.open(subject.gguf("f32"))
    ids = [source.tokenizer.encode(text)[:64] for text in subject.text.texts[:4]]
    windows = Windows([i.tolist() for i in ids], np.arange(len(ids)), np.ones(len(ids), np.int64))
    data = CalibrationData("text", ids, windows, subject.text.texts[:1], windows, [], [], 64)
    session = Session(MeasuredModel(source, data, 1, Events()), subject.folder)
    chosen = Candidates(session, Quantizer.make("auto", {})).of_mix("Q4_0")
    measured = session.model.importance.means
    assert {"Q4_0"} <= {*chosen.kinds.values()} and set(session.model.costs.num_bytes) <= {
        *measured,
        "token_embd.weight",  # looked up, as the next
        "per_layer_token_embd.weight",
    }
    with session.candidate_file(chosen.kinds) as path:
        assert 0 <= path.stat().st_size - chosen.num_bytes < 512  # what it says of its importance
        figures = shrunk_gate(source, path, subject.text.texts[:1], LEAST)
    # by the divergence alone: random weights enlarge in logits what llama.cpp's rounding of activations costs
    assert figures["kl"] <= figures["bars"]["kl"], figures["first_difference"]


@ability("serve")
def answers(subject: Subject) -> None:
    """With a draft model, and where prompts begin alike: the likeliest tokens are those of the live model."""
    text = subject.text
    sequences = [text.tokenizer.encode(t)[:48].tolist() for t in text.texts[:2]]
    again = [sequences[0], sequences[0][:24] + sequences[1][:24], sequences[0]]
    bars = ggml_type("F32").bars
    assert bars is not None
    with Engine(subject.gguf("f32"), threads=1, draft=Draft(subject.gguf("q8_0"), 4, 0.0)) as engine:
        compared = compare_greedy(subject.model, text.tokenizer, engine, again, bars, ANSWERS)
    assert compared["greedy_tokens_equal"] >= len(again)


@ability("tokens")
def shows_tokens(subject: Subject) -> None:
    """Each token of a text with the probability that the live model gives it."""
    path, text = subject.gguf("f32"), subject.text.texts[0][:80]
    with TokenReader(ModelRef("model", "model", Source.at(path)), threads=1) as reader:
        reading = reader.read(reader.encode(text))
    live = logprobs(subject.model, reading.ids, range(len(reading.ids) - 1))
    there = live[torch.arange(len(live)), torch.tensor(reading.ids[1:])].tolist()
    assert [reading.logprob(at) for at in range(1, len(reading.ids))] == pytest.approx(there, abs=0.05)


@ability("decide")
def decides(subject: Subject) -> None:
    """Tuned on labels; llama.cpp's probabilities are those of the live model, and those of another model are not."""
    rows = {"inputs": [str(subject.text.labelled)], "batch_rows": 24}  # most of them: each shows one token only
    how = {"objective": {"name": "decision"}, "optimizer": {"name": "adamw", "lr": 3e-4}}
    learns(tune_decision.JOB, tuning(subject.hf, subject, "lora", **rows, **how))
    tokenizer = subject.text.tokenizer
    labels, prompt = all_labels(tokenizer), DecisionPrompt.of(tokenizer, ChatTemplate(tokenizer.chat_template))
    asked = {"type": "choice", "instructions": "Which?", "criteria": {"sea": None, "wind": "it blows"}}
    texts = subject.text.texts[:4]
    states = [DecisionRow(text[:40], "it", Question.from_json(asked), (1.0, 0.0), text) for text in texts]
    keys = DecisionKeys(DECISION_TYPE, prompt.template, {"choice": 1.0}, {"it": asked}, ("text",))
    encoder = DecisionEncoder(tokenizer, prompt, labels)
    gate = DecisionGate(subject.model, Decision(labels=[*labels.values()]), encoder, keys, states)
    name = next(n for n, weight in subject.weights.items() if ".layers." in n and weight.ndim == 2)
    for weights in (subject.weights, {**subject.weights, name: subject.weights[name].roll(1, 0)}):
        path, own = subject.folder / "decider.gguf", keys.metadata(subject.part.gguf_family)
        export_gguf(subject.part, weights, tokenizer, path, "f32", {}, own)
        with nullcontext() if weights is subject.weights else pytest.raises(GateError, match="away from the trained"):
            gate.run(path)
        path.unlink()


@ability("gate")
def exports(subject: Subject) -> None:
    """A file equals the model, and one with a tensor in another order is refused."""
    part, weights, tokenizer, model = subject.part, subject.weights, subject.text.tokenizer, subject.model
    path, texts = subject.folder / "model.gguf", subject.text.texts[:1]
    exported = ExportedModel("model", model, part, weights, tokenizer, texts)
    figures = export_model(exported, Gguf(dtype="f32"), path, LEAST)
    assert figures and figures["passed"]
    name = next(n for n, weight in weights.items() if ".layers." in n and weight.ndim == 2)
    other = ExportedModel("other", model, part, {**weights, name: weights[name].roll(1, 0)}, tokenizer, texts)
    path.unlink()
    with pytest.raises(GateError, match="does not behave like the trained model"):
        export_model(other, Gguf(dtype="f32"), path, LEAST)
    assert not path.exists()
