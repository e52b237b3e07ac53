"""Short real trainings of a planned model, which measure what it costs here, what it holds and how fast it learns.

`probe` trains a new model; `measure` takes a few steps with a pretrained one, which is loaded already, and restores it.
"""

import math
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from settle.base.event_log import Events
from settle.base.events import Event, Progress, Say, Step
from settle.base.run import Run
from settle.data.batches import RowBatches, held_out_batches
from settle.data.prepare import Corpus
from settle.machine import EnergyMeter, PeakMemory, resident
from settle.model.layers.linear import casts_of, refresh_casts
from settle.plan.memory import must_fit
from settle.plan.phases import Waiting
from settle.train.checkpoint import Weights
from settle.train.evaluation import Evaluation, HeldOut, evaluate
from settle.train.live_run import EVALUATION_BLOCK, LiveRun, blocks
from settle.train.state import LoopState
from settle.train.training_plan import TrainingPlan
from settle.train.world.rank_costs import ONE, RankCosts, Ranks, rehearsal_steps

SHARE_OF_TIME = 0.05  # share of a time budget that a probe may take
# of a new model: on recorded runs twice the steps, or a second probe, made the forecast of the loss no better
SHARE, NEW_SHARE_OF_TIME = 0.0125, 0.0125  # share of the run's steps; of a time budget
FEWEST, MOST = 24, 400  # steps; a short run is probed for a tenth of its steps at most
ENOUGH_SECONDS = 0.75  # with the fewest steps, of any time budget: most recorded runs were probed by these
DECAY = 0.4  # share of the probe in which the learning rate falls to zero, as at the end of a run
EVALUATED_TOKENS = 16384  # held-out tokens, or as many as were trained on: a third of the probe's time
# of a pretrained model
TUNING_SHARE, TUNING_FEWEST, TUNING_MOST = 0.04, 4, 24  # steps, of those that are expected
FEWEST_BLOCKS = 4  # minimum blocks of held-out rows; their spread gives the standard error of the loss
PATIENCE = 90.0  # seconds after which two steps have to be enough
MOST_SEARCHED = 20_000  # batches among which the largest is searched


@dataclass(frozen=True)
class ProbeResult:
    """What a probe measured. Times in seconds, sizes in bytes, losses in nats per held-out token."""

    steps: int
    step_seconds: float  # of an average optimizer step of this process alone
    step_spread: float  # standard deviation of a step's time, as a share of it
    evaluation_seconds: float  # of one evaluation by this process, per held-out token
    memory: int  # most held by the process
    watts: float  # drawn on average
    watts_source: str  # asked, measured or estimated
    after: float  # loss after the last step
    stderr: float  # of `after`
    before: float = math.nan  # loss of a pretrained model before the first step
    waiting: float = 1.0  # times longer than alone the steps took
    ranks: RankCosts | None = None  # of all ranks together, where they share the run
    # of a new model alone
    memory_growth: int = 0  # what `memory` rose by over the last doubling of the steps
    offset: float = 0.0  # ln of the loss on the run's own held-out sample ÷ `after`
    threads: int = 1
    why_threads: str = ""  # empty where somebody asked for the number

    @property
    def step(self) -> float:
        """Seconds of a step of the run: of this process, or of all ranks together."""
        return self.step_seconds if self.ranks is None else self.ranks.step

    @property
    def spread(self) -> float:
        """The standard deviation of `step`, as a share of it."""
        return self.step_spread if self.ranks is None else self.ranks.spread


def probe_steps(expected_steps: int) -> int:
    """Return the length of the probe of a new model for a run of `expected_steps`."""
    return max(4, min(MOST, max(FEWEST, round(SHARE * expected_steps)), expected_steps // 10))


def probe_new(
    plan: TrainingPlan, corpus: Corpus, watts: float | None, events: Events, ranks: Ranks = ONE
) -> tuple[TrainingPlan, ProbeResult]:
    """Probe a new model: return the plan with its number of threads, and what the probe measured.

    It has the steps of all ranks that will share the run. Raises ResourceError, before anything is allocated, when the
    run would not fit in memory.
    """
    must_fit(plan)
    steps = probe_steps(plan.loop.max_steps or 50 * plan.loop.warmup_steps)
    measured = probe(plan, corpus, steps, watts, events)
    if measured.why_threads:
        plan = plan.with_threads(measured.threads, measured.why_threads)
    if ranks.size > 1:
        measured = _rehearsed(LiveRun.build(plan, corpus), measured, watts, events, ranks)
    return plan, measured


def probe(
    plan: TrainingPlan, corpus: Corpus, most_steps: int, watts: float | None = None, report: Events | None = None
) -> ProbeResult:
    """Train the plan's model for `most_steps` on a schedule of its own, and evaluate more held-out text at the end.

    A time budget may end it earlier. Nothing is evaluated on the way. `watts`: what the machine draws, when the user
    says so. `report`: receives the progress.
    """
    report = report or Events()
    plan = plan.with_loop(
        max_steps=most_steps,
        seconds=plan.loop.seconds and plan.loop.seconds * NEW_SHARE_OF_TIME,
        warmup_steps=min(plan.loop.warmup_steps, max(1, most_steps // 4)),
        decay_fraction=DECAY,
        until_settled=False,
        is_refit=True,
        checkpoint_steps=most_steps + 1,
    )
    loop = plan.loop
    job = LiveRun.build(replace(plan, held_out_tokens=loop.sequence_length), corpus)
    job.choose_threads()
    _limit_time(job)
    times: list[float] = []
    peaks: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, Step):
            times.append(loop.tokens_per_step / event.tokens_per_second)
            peaks.append(peak.read())
            report.emit(Progress(what="probe", done=event.step, total=most_steps, unit="steps"))

    peak, meter, waiting = PeakMemory(), EnergyMeter(watts, plan.device), Waiting(plan.device)
    with tempfile.TemporaryDirectory(prefix="settle-probe-") as folder:
        run = Run(Path(folder))
        run.checkpoints.mkdir()
        steps = job.loop(run, Events(listeners=[listen]), lambda: False).train().state.step
    waited, energy = waiting.read(), meter.read()
    report.emit(Progress(what="probe", done=most_steps, total=most_steps, unit="steps"))
    settled_times = times[len(times) // 4 :]  # the first steps find their memory and their kernels
    limit = max(2 * EVALUATION_BLOCK, min(EVALUATED_TOKENS, steps * loop.tokens_per_step))
    sample = list(held_out_batches(corpus.selection, loop.sequence_length, EVALUATION_BLOCK, limit))
    began = time.perf_counter()
    held_out = HeldOut(sample, corpus.tokenizer.byte_length)
    evaluation = evaluate(job.model, job.objective, held_out, steps, steps * loop.tokens_per_step)
    evaluation_seconds = time.perf_counter() - began
    own = HeldOut(blocks(plan, corpus.selection, plan.held_out_tokens), corpus.tokenizer.byte_length)
    on_own = evaluate(job.model, job.objective, own, steps, steps * loop.tokens_per_step).loss
    return ProbeResult(
        steps=steps,
        step_seconds=statistics.fmean(settled_times),
        step_spread=statistics.pstdev(settled_times) / statistics.fmean(settled_times),
        evaluation_seconds=evaluation_seconds / held_out.num_tokens,
        memory=max(peaks[-1], resident()),
        memory_growth=peaks[-1] - peaks[len(peaks) // 2],
        watts=energy.watts,
        watts_source=energy.source,
        after=evaluation.loss,
        stderr=evaluation.stderr,
        offset=math.log(on_own / evaluation.loss),
        waiting=waited,
        threads=job.plan.loop.threads,
        why_threads=job.plan.why.get("threads", ""),
    )


def _limit_time(job: LiveRun) -> None:
    """Let a probe take no longer than is enough, by a step that is timed; the weights stay as they are."""
    seconds, took = job.plan.loop.seconds, 0.0
    if seconds is None or seconds <= ENOUGH_SECONDS:
        return
    trainer = job.trainer()
    for _ in range(2):  # the first finds its memory
        began = time.perf_counter()
        trainer.rehearse(updates=True)
        took = time.perf_counter() - began
    enough = max(ENOUGH_SECONDS, FEWEST * took * job.plan.loop.micro_batches)
    job.plan = job.plan.with_loop(seconds=min(seconds, enough))


def tuning_steps(plan: TrainingPlan) -> int:
    """Return how many steps a tuning run is expected to take, for the length of its probe."""
    return plan.loop.max_steps or 25 * plan.loop.warmup_steps


def measure(job: LiveRun, watts: float | None = None, report: Events | None = None) -> ProbeResult:
    """Take some of the run's own steps at a rate that rises and falls, evaluate, and restore the model.

    The first step has the largest batch of the run, for the memory that it takes. A time budget may end the probe
    earlier. `watts`, `report`: as in `probe`.
    """
    loop, expected, report = job.plan.loop, tuning_steps(job.plan), report or Events()
    assert isinstance(job.batches, RowBatches)
    steps = max(TUNING_FEWEST, min(TUNING_MOST, round(TUNING_SHARE * expected)))
    sample = _thinned(job, steps)
    weights = _weights(job)
    job.choose_threads()
    patience = min(PATIENCE, SHARE_OF_TIME * (loop.seconds or math.inf))
    peak, meter, waiting = PeakMemory(), EnergyMeter(watts, job.plan.device), Waiting(job.plan.device)
    times, tokens = [], []
    trainer, state = job.trainer(), LoopState()
    before, _ = _evaluated(job, sample)
    state.position = job.batches.largest(min(MOST_SEARCHED, expected * loop.micro_batches))
    for step in range(steps):
        began, first = time.perf_counter(), state.position
        trainer.take_step(state, min(step + 1, steps - step) / (steps / 2 + 1))
        times.append(time.perf_counter() - began)
        tokens.append(sum(len(job.batches.at(at).inputs) for at in range(first, state.position)))
        report.emit(Progress(what="probe", done=step + 1, total=steps, unit="steps"))
        state.position = state.position if step else 0
        if sum(times) > patience and (step or loop.seconds):
            break
    after, evaluation_seconds = _evaluated(job, sample)
    energy = meter.read()
    # the first step finds its memory and its kernels
    start = 1 if len(times) > 1 else 0
    paces = [took / count * loop.tokens_per_step for took, count in zip(times[start:], tokens[start:], strict=True)]
    pace = sum(times[start:]) / sum(tokens[start:]) * loop.tokens_per_step
    memory = max(peak.read(), resident())
    _restore(job, weights)
    return ProbeResult(
        steps=len(times),
        step_seconds=pace,
        step_spread=statistics.pstdev(paces) / pace,
        evaluation_seconds=evaluation_seconds / sample.num_tokens,
        memory=memory,
        watts=energy.watts,
        watts_source=energy.source,
        before=before.loss,
        after=after.loss,
        stderr=after.stderr,
        waiting=waiting.read(),
    )


def probe_tuning(live: LiveRun, watts: float | None, events: Events, ranks: Ranks = ONE) -> ProbeResult:
    """Measure the model of a tuning run, and the steps of all ranks that will share the run; leave it as it was."""
    measured = measure(live, watts, events)
    if ranks.size == 1:
        return measured
    if live.plan.loop.is_sharded:  # the model that is shared out is no longer whole
        return _rehearsed(LiveRun.build(live.plan, live.corpus, live.base), measured, watts, events, ranks)
    weights = _weights(live)
    shared = _rehearsed(live, measured, watts, events, ranks)
    _restore(live, weights)
    return shared


def _rehearsed(live: LiveRun, measured: ProbeResult, watts: float | None, events: Events, ranks: Ranks) -> ProbeResult:
    """Measure some steps of all ranks together, beside those of this process. The model's weights change."""
    budget = live.plan.loop.seconds and live.plan.loop.seconds * SHARE_OF_TIME
    costs = ranks.rehearse(live, rehearsal_steps(measured.step_seconds, budget), watts)
    events.emit(Say(text=costs.words(ranks.size, measured.step_seconds)))
    return replace(measured, ranks=costs)


def _thinned(job: LiveRun, steps: int) -> HeldOut:
    """Return a part of the run's held-out sample that suits so few steps.

    Its blocks have the run's size: each has its price.
    """
    limit = min(job.plan.held_out_tokens, max(2048, steps * job.plan.loop.tokens_per_step))
    held_out = blocks(job.plan, job.corpus.selection, job.plan.held_out_tokens)
    every = min(job.plan.held_out_tokens // limit, len(held_out) // FEWEST_BLOCKS)
    return HeldOut(held_out[:: max(1, every)], job.tokenizer.byte_length)


def _evaluated(job: LiveRun, sample: HeldOut) -> tuple[Evaluation, float]:
    """Evaluate the model as it is, and return the seconds that it took, too."""
    began = time.perf_counter()
    evaluation = evaluate(job.model, job.objective, sample, 0, 0)
    return evaluation, time.perf_counter() - began


def _weights(job: LiveRun) -> Weights:
    """Copy what is trained, unless it can be read from the base again."""
    return {} if job.whole else {name: p.detach().clone() for name, p in job.model.trainable().items()}


def _restore(job: LiveRun, weights: Weights) -> None:
    """Set the weights to what they were before the first step."""
    with torch.no_grad():
        for name, parameter in job.model.trainable().items():
            parameter.copy_(job.initial(name) if job.whole else weights[name])
    refresh_casts(casts_of(job.model))
    job.model.zero_grad(set_to_none=True)
