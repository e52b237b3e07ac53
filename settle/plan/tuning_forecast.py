"""What a tuning run will need and reach, before it begins. Measured on the model itself, which is loaded already: a few
real steps and an evaluation of held-out rows, after which the weights are restored.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from settle.base.event_log import Events
from settle.base.events import Progress, Say
from settle.base.statistics import FORECAST_LEVEL, Interval
from settle.data.rows.batches import RowBatches
from settle.data.rows.prepare import RowCorpus
from settle.machine import EnergyMeter, PeakMemory, resident
from settle.model.layers.linear import refresh_casts
from settle.plan.forecast import (
    RANKS_SPREAD,
    budgeted,
    cost_interval,
    joules,
    power_spread,
    settling,
    token_budget,
    within_budget,
)
from settle.plan.forecast_figures import Forecast, budgeted_time
from settle.plan.outlook import TuningStart
from settle.plan.phases import Phases, Waiting, export_seconds, give_way, with_phases
from settle.plan.probe import SHARE_OF_TIME
from settle.plan.settings import TuningSettings
from settle.train.checkpoint import Weights
from settle.train.evaluation import HeldOut, evaluate
from settle.train.live_run import LiveRun, blocks
from settle.train.settled import next_evaluation
from settle.train.state import LoopState
from settle.train.training_plan import TrainingPlan
from settle.train.world.rank_costs import ONE, RankCosts, Ranks, rehearsal_steps

SHARE, FEWEST, MOST = 0.04, 4, 24  # steps of the probe, of those that are expected
FEWEST_BLOCKS = 4  # minimum blocks of held-out rows; their spread gives the standard error of the loss
PATIENCE = 90.0  # seconds after which two steps have to be enough
MOST_SEARCHED = 20_000  # batches among which the largest is searched
PROOF_STEPS = 3.0  # steps that the proof takes as long as
# Standard deviations of the logarithm of actual ÷ forecast
TIME_SPREAD, MEMORY_SPREAD, LOSS_SPREAD = 0.07, 0.07, 0.15
# What memory grows by after the probe: heap fragmentation by batches of varying size, and the work after the last
# step. Products in a half type work on copies of the weights, which fragment the heap more. Where layers are recomputed
# in the backward pass hardly anything is kept from one to the next, and there is no fragmentation to speak of.
MEMORY_GROWTH, HALF_MEMORY_GROWTH = 1.05, 1.25  # peak memory of the run ÷ that of the probe; float32, half types
STOP_SPREAD = 0.4  # relative spread of the tokens at which a run settles
SETTLES_AFTER = 2.0  # epochs, when the first verdict would be possible sooner
LABELS_AFTER, LABEL_STEPS = 6.0, 100  # epochs, and steps at least, after which few labelled rows are learned
Comparing = Callable[[float], float]
LABELS_LEFT = (0.12, 0.45, 1.0)  # share of a decision's loss before training that is left: ends and value
LEAST_LEFT = 0.05  # share of the loss after the probe that is left at least, however long the run
FALL = 0.35  # share of the loss's fall in the probe that is repeated with every further factor e of tokens


@dataclass(frozen=True)
class Measured:
    """Times in seconds, memory in bytes, losses per target of the held-out sample before and after the probe."""

    steps: int
    step_seconds: float  # time of a step with an average number of tokens
    step_spread: float
    evaluation_seconds: float  # per held-out token
    memory: int
    watts: float
    watts_source: str
    before: float
    after: float
    stderr: float
    waiting: float = 1.0  # times longer than alone the steps took
    ranks: RankCosts | None = None  # of all ranks together, whose steps `step_seconds` and `step_spread` then are


def look_ahead(
    job: LiveRun,
    settings: TuningSettings,
    elapsed: Callable[[], float],
    comparing: Comparing,
    events: Events,
    ranks: Ranks = ONE,
) -> Forecast:
    """Measure the plan's model and forecast its run. `elapsed`: seconds since the command began; `comparing`: seconds
    of the comparison at the end, by the seconds per token of a forward pass; `ranks`: that will share the run.

    The model is left as it was; the run's plan keeps time for what follows the loop.
    """
    measured = measure(job, settings.watts, events)
    alone = measured.step_seconds
    if ranks.size > 1:
        costs = _rehearsed(job, ranks, alone, settings.watts)
        events.emit(Say(text=costs.words(ranks.size, alone)))
        measured = replace(measured, step_seconds=costs.step, step_spread=costs.spread, ranks=costs)
    plan, per_token, spent = job.plan, measured.evaluation_seconds, elapsed()
    of_step = measured.step_seconds / plan.loop.tokens_per_step
    tokens = min(token_budget(plan, of_step, spent), float(job.corpus.train.num_tokens * job.objective.passes))
    whole = _finally_evaluated(job, tokens)
    judge = per_token * (plan.held_out_tokens + whole)
    adds = plan.num_parameters if job.whole else sum(p.numel() for p in job.model.trainable().values())
    export = export_seconds(adds, per_token, plan.loop.threads, measured.waiting)
    comparison = comparing(per_token)
    job.plan = plan = with_phases(plan, judge + export, comparison, alone, judge, measured.waiting)
    proof = PROOF_STEPS * alone
    if plan.loop.seconds:
        planned = plan.loop.seconds_comparing
        job.plan = plan = give_way(plan, spent, proof)
        comparison = plan.loop.seconds_comparing
        if comparison < planned:
            cut = f"is shortened to about {comparison:,.0f} s" if comparison else "is left out"
            events.emit(Say(text=f"the time has room for few steps: the comparison at the end {cut}"))
    return forecast(job, measured, settings, Phases(spent, proof, 0.0, judge, export, comparison), ranks.hosts)


def _rehearsed(job: LiveRun, ranks: Ranks, alone: float, watts: float | None) -> RankCosts:
    """What the steps of all ranks cost. alone: seconds of one process's step. The model is left as it was."""
    steps = rehearsal_steps(alone, job.plan.loop.seconds and job.plan.loop.seconds * SHARE_OF_TIME)
    if job.plan.loop.is_sharded:  # the model that is shared out is no longer whole
        return ranks.rehearse(LiveRun.build(job.plan, job.corpus, job.base), steps, watts)
    weights = _weights(job)
    costs = ranks.rehearse(job, steps, watts)
    _restore(job, weights)
    return costs


def _weights(job: LiveRun) -> Weights:
    """A copy of what is trained, unless it can be read from the base again."""
    return {} if job.whole else {name: p.detach().clone() for name, p in job.model.trainable().items()}


def _restore(job: LiveRun, weights: Weights) -> None:
    """The weights as they were before the first step."""
    with torch.no_grad():
        for name, parameter in job.model.trainable().items():
            parameter.copy_(job.initial(name) if job.whole else weights[name])
    refresh_casts(job.model)
    job.model.zero_grad(set_to_none=True)


def _finally_evaluated(job: LiveRun, tokens: float) -> int:
    """Held-out tokens that `LiveRun.judge` reads after that many tokens of training."""
    return min(job.corpus.held_out.num_tokens, job.judged_tokens(tokens / job.plan.loop.tokens_per_step))


def measure(job: LiveRun, watts: float | None = None, report: Events | None = None) -> Measured:
    """Steps with the run's own batches and a rate that rises and falls, on the model itself. The first one is with the
    largest batch of the run, for the memory that it takes. A time budget may end it earlier. report: receives the
    progress.
    """
    loop, model = job.plan.loop, job.model
    assert isinstance(job.batches, RowBatches)
    steps = max(FEWEST, min(MOST, round(SHARE * expected_steps(job.plan))))
    limit = min(job.plan.held_out_tokens, max(2048, steps * loop.tokens_per_step))
    held_out = blocks(job.plan, job.corpus.selection, job.plan.held_out_tokens)
    every = min(job.plan.held_out_tokens // limit, len(held_out) // FEWEST_BLOCKS)
    # blocks as large as the run's: each has its price
    sample = HeldOut(held_out[:: max(1, every)], job.tokenizer.byte_length)
    weights = _weights(job)

    def evaluated() -> tuple[float, float, float]:
        began = time.perf_counter()
        evaluation = evaluate(model, job.objective, sample, 0, 0)
        return evaluation.loss, evaluation.stderr, time.perf_counter() - began

    job.choose_threads()
    patience = min(PATIENCE, SHARE_OF_TIME * (loop.seconds or math.inf))
    peak, meter, waiting = PeakMemory().start(), EnergyMeter(watts, job.plan.device).start(), Waiting(job.plan.device)
    times, tokens = [], []
    trainer, state = job.trainer(), LoopState()
    before, _, _ = evaluated()
    state.position = job.batches.largest(min(MOST_SEARCHED, expected_steps(job.plan) * loop.micro_batches))
    for step in range(steps):
        began, first = time.perf_counter(), state.position
        trainer.take_step(state, min(step + 1, steps - step) / (steps / 2 + 1))
        times.append(time.perf_counter() - began)
        tokens.append(sum(len(job.batches.at(at).inputs) for at in range(first, state.position)))
        if report is not None:
            report.emit(Progress(what="probe", done=step + 1, total=steps, unit="steps"))
        state.position = state.position if step else 0
        if sum(times) > patience and (step or loop.seconds):
            break
    after, stderr, evaluation_seconds = evaluated()
    energy = meter.read()
    # the first step finds its memory and its kernels
    start = 1 if len(times) > 1 else 0
    paces = [took / count * loop.tokens_per_step for took, count in zip(times[start:], tokens[start:], strict=True)]
    pace = sum(times[start:]) / sum(tokens[start:]) * loop.tokens_per_step
    memory = max(peak.read(), resident())
    _restore(job, weights)
    return Measured(
        steps=len(times),
        step_seconds=pace,
        step_spread=statistics.pstdev(paces) / pace,
        evaluation_seconds=evaluation_seconds / sample.num_tokens,
        memory=memory,
        watts=energy.watts,
        watts_source=energy.source,
        before=before,
        after=after,
        stderr=stderr,
        waiting=waiting.read(),
    )


def forecast(job: LiveRun, measured: Measured, settings: TuningSettings, phases: Phases, hosts: int = 1) -> Forecast:
    """`phases`: where the time goes; that of the loop is found here."""
    loop, spent = job.plan.loop, phases.before
    assert isinstance(job.corpus, RowCorpus)
    per_token = measured.step_seconds / loop.tokens_per_step
    expected = SETTLES_AFTER * job.corpus.train.num_inputs
    if job.objective.rows == "decision":
        expected = max(LABELS_AFTER * job.corpus.train.num_inputs, float(LABEL_STEPS * loop.tokens_per_step))
    around = settling(job.plan, expected, STOP_SPREAD)
    tokens = within_budget(job.plan, around, per_token, spent + phases.proof)
    costs = measured.ranks
    per_evaluated = measured.evaluation_seconds if costs is None else costs.evaluation
    evaluations = _evaluations(job.plan, tokens.value) * job.plan.held_out_tokens * per_evaluated
    if loop.seconds:  # the evaluations are part of the loop's time
        evaluations = min(evaluations, tokens.value * per_token * loop.evaluation_cost)
    beside = 0.0 if costs is None else costs.beside
    phases = replace(phases, loop=tokens.value * per_token + evaluations + beside)
    fixed = phases.total - tokens.value * per_token
    unsure_steps = measured.step_spread / math.sqrt(measured.steps)
    seconds = tokens.value * per_token + fixed
    of_steps = math.hypot(unsure_steps, tokens.log_std) * (1 - fixed / seconds)
    spread = TIME_SPREAD if costs is None else RANKS_SPREAD
    duration = Interval.log_normal(seconds, math.hypot(spread, of_steps))
    if loop.seconds:
        duration = budgeted_time(duration, loop.seconds)
    spread = math.hypot(duration.log_std, power_spread(measured.watts_source))
    energy = Interval.log_normal(joules(duration.value - spent, phases.loop, measured.watts, costs), spread)
    whole = sum(p.numel() for p in job.model.trainable().values()) * 4 if job.whole else 0
    start = TuningStart(math.sqrt(2) * measured.stderr / measured.after, loop.warmup_steps * loop.tokens_per_step)
    if job.model.recompute:
        memory = float(measured.memory + _widened_head(job))
    else:
        memory = measured.memory * memory_growth(job.plan.dtype)
    return Forecast(
        tokens=tokens,
        time=duration,
        # the best weights are kept beside the ones that are trained
        peak_memory=Interval.log_normal(memory + whole, MEMORY_SPREAD),
        energy=energy,
        cost=cost_interval(energy, duration, settings, hosts),
        loss=_label_loss(measured) if job.objective.rows == "decision" else _loss(job.plan, measured, tokens),
        currency=settings.currency,
        watts_source=measured.watts_source,
        budgeted=budgeted(job.plan, tokens, duration),
        phases=phases.to_json(),
        curve=start.to_json(),
    )


def memory_growth(dtype: str) -> float:
    """Peak memory of the whole run ÷ that of the probe, by the type that is computed in."""
    return MEMORY_GROWTH if dtype == "float32" else HALF_MEMORY_GROWTH


def expected_steps(plan: TrainingPlan) -> int:
    """Steps until the run ends, where the settings decide it."""
    return plan.loop.max_steps or 25 * plan.loop.warmup_steps


def _widened_head(job: LiveRun) -> int:
    """Bytes of the output table in fp32, which the proof multiplies by and the probe does not."""
    numbers = job.model.options.vocab_size * job.model.options.layers[-1].width
    return 0 if job.whole or job.plan.dtype == "float32" else 4 * numbers


def _evaluations(plan: TrainingPlan, tokens: float) -> int:
    """How often the run will evaluate its held-out sample."""
    evaluations, at = 2, 0  # at its beginning and at its end
    while (at := next_evaluation(at, plan.held_out_tokens, plan.loop.evaluation_cost)) < tokens:
        evaluations += 1
    return evaluations


def _label_loss(measured: Measured) -> Interval:
    """Of labels nearly all of the loss goes where the text says them, and none where it does not: the few steps of a
    probe cannot tell which."""
    low, value, high = (share * measured.before for share in LABELS_LEFT)
    return Interval(value, low, high, FORECAST_LEVEL)


def _loss(plan: TrainingPlan, measured: Measured, tokens: Interval) -> Interval:
    """The fall that the probe saw goes on ever more slowly with the logarithm of the tokens; at the lower end, where
    rows are so alike that they are learned by heart, by the same share of the loss again and again.

    A probe that saw more fall than is left has memorized much already. What is left of it then falls no faster than a
    power law of the tokens, and half of that way is where the upper end lies.
    """
    probed = measured.steps * plan.loop.tokens_per_step
    fall = max(0.0, measured.before - measured.after)

    def power(number: float, exponent: float) -> float:
        return measured.after * math.pow(max(1.0, number / probed), -exponent)

    def at(number: float) -> float:
        straight = measured.after - FALL * fall * math.log(max(1.0, number / probed))
        return max(power(number, FALL), LEAST_LEFT * measured.after, straight)

    spread = math.hypot(LOSS_SPREAD, measured.stderr / measured.after)
    value = Interval.log_normal(at(tokens.value), spread)
    by_heart = power(tokens.high, min(1.0, fall / measured.after))
    high = max(value.high, at(tokens.low))
    if fall > measured.after:
        high = max(high, power(tokens.value, FALL / 2))
    return Interval(value.value, min(value.low, at(tokens.high), by_heart), high, FORECAST_LEVEL)
