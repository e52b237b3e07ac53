"""What a run will need and reach, before it begins: memory, time, energy, money and final loss, with 80 % intervals.

Costs come from a probe (settle/plan/probe.py). The loss of a new model comes from its probe and from what recorded
runs say of learning curves (settle/plan/loss_curve.py); that of a tuned one from how its probe's loss fell.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from settle.base.event_log import Events
from settle.base.events import Say
from settle.base.statistics import FORECAST_LEVEL, Interval, two_sided_z
from settle.data.prepare import Corpus
from settle.data.rows.prepare import RowCorpus
from settle.machine import resident
from settle.model.decoder import Decoder
from settle.plan.forecast_figures import BUDGET_SECONDS, Forecast, budgeted_time
from settle.plan.loss_curve import CurveFacts, Observation, recorded
from settle.plan.loss_law import counted
from settle.plan.outlook import SETTLED_DECAY, CurveStart, TuningStart
from settle.plan.phases import COMPARISON_SHARE, Phases, export_seconds, keep_time, loop_seconds
from settle.plan.probe import DECAY, ProbeResult
from settle.plan.settings import RunSettings, TrainingSettings, TuningSettings
from settle.train.objectives import Objective
from settle.train.settled import EVALUATION_COST, MIN_HISTORY, decay_tokens, next_evaluation
from settle.train.settled.trend import MORE
from settle.train.training_plan import TrainingPlan
from settle.train.watch import SLACK
from settle.train.world.rank_costs import RankCosts

# Standard deviations of the logarithm of actual ÷ forecast. 2026-11-25: runs on one machine.
COUNTED_POWER_SPREAD = 0.15
ESTIMATED_POWER_SPREAD = math.log(12 / 4) / 2 / two_sided_z(FORECAST_LEVEL)  # a core draws 4 to 12 W (machine/power.py)
RANKS_SPREAD = 0.15  # 2026-11-29: time of ranks, which wait for the slowest in every step, on a shared machine
PACE_SPREAD = 0.15  # of the tokens that a time budget has room for: how busy the machine will be is not known
PROOF_STEPS = 3.0  # the proof takes as long as so many steps
BEYOND_FIRST = 1.15  # a run that could settle at once gets its verdict so much after the first that is possible
# of a new model
TIME_SPREAD, MEMORY_SPREAD = 0.08, 0.05
DOUBLINGS = 6.0  # the kernels' cache grows this long, as batches have ever new shapes
# bytes of what only a run does: verdicts, forecasts, checkpoints. 10 runs of 200 to 300 k parameters: 32 to 57 MB
LOOP_MEMORY = 36e6
PROOF_SECONDS = 1.0  # of the proof beside its steps
EARLY = 2.0  # warm-ups after which the evaluations of a run say how it will go on
STOP_SPREAD = 0.5  # relative spread of the tokens at which a run settles
LATER_STOP = 1.5  # the verdict comes this much later than it is true (bench/settled.py)
EVALUATION_SLOWDOWN = 1.25  # times slower evaluations are in a run than in a row
# of a pretrained one
TUNING_TIME_SPREAD, TUNING_MEMORY_SPREAD, LOSS_SPREAD = 0.07, 0.07, 0.15
# What memory grows by after the probe: heap fragmentation by batches of varying size, and the work after the last
# step. Products in a half type work on copies of the weights, which fragment the heap more. Where layers are recomputed
# in the backward pass hardly anything is kept from one to the next, and there is no fragmentation to speak of.
MEMORY_GROWTH, HALF_MEMORY_GROWTH = 1.05, 1.25  # peak memory of the run ÷ that of the probe; float32, half types
TUNING_STOP_SPREAD = 0.4
SETTLES_AFTER = 2.0  # epochs, when the first verdict would be possible sooner
LABELS_AFTER, LABEL_STEPS = 6.0, 100  # epochs, and steps at least, after which few labelled rows are learned
LABELS_LEFT = (0.12, 0.45, 1.0)  # share of a decision's loss before training that is left: ends and value
LEAST_LEFT = 0.05  # share of the loss after the probe that is left at least, however long the run
FALL = 0.35  # share of the loss's fall in the probe that is repeated with every further factor e of tokens


# --- a new model ---


def look_ahead(
    plan: TrainingPlan,
    corpus: Corpus,
    measured: ProbeResult,
    settings: TrainingSettings,
    spent: float,
    hosts: int = 1,
) -> tuple[TrainingPlan, Forecast]:
    """Forecast the run of a new model by its probe; return its plan, which keeps time for what follows the loop.

    spent: seconds since the command began.
    """
    held = resident()
    tokens = min(token_budget(plan, _seconds_per_token(plan, measured), spent), 60.0 * 9 * plan.held_out_tokens)
    judged = _finally_evaluated(plan, corpus.held_out.num_tokens, 3 * tokens / 20)
    proof = PROOF_SECONDS + PROOF_STEPS * measured.step_seconds
    phases = Phases(spent, proof, 0.0, *_after_loop(plan, measured, judged, plan.num_parameters))
    plan, phases = keep_time(plan, phases, measured.step_seconds, measured.waiting)
    expected = forecast(plan, _curve_start(plan, corpus, measured), measured, settings, phases, hosts)
    # what the forecast of the loss took after the probe's memory was read stays with the process
    return plan, replace(expected, peak_memory=expected.peak_memory.shifted(max(0, resident() - held)))


def forecast(
    plan: TrainingPlan, start: CurveStart, measured: ProbeResult, settings: RunSettings, phases: Phases, hosts: int = 1
) -> Forecast:
    """Forecast the run of a new model. `phases`: where the time goes; that of the loop is found here."""
    per_token, spent = _seconds_per_token(plan, measured), phases.before + phases.proof
    known = recorded().most_passes * start.facts.unique  # the law says nothing of more passes: they teach nothing
    tokens = expected_tokens(plan, per_token, lambda t: start.loss(min(t, known)).value, spent)
    if tokens.value < token_budget(plan, per_token, spent):
        start = replace(start, decay=SETTLED_DECAY)  # it is expected to end by its verdict
    loop = tokens.value * per_token
    if measured.ranks is not None:  # with the evaluations of just this length, and how it begins
        evaluated = _evaluations(plan, tokens.value) * plan.held_out_tokens
        loop = measured.ranks.loop(tokens.value / plan.loop.tokens_per_step, evaluated)
    phases = replace(phases, loop=loop)
    # a machine whose steps are uneven now will be busy or quiet later
    of_steps = TIME_SPREAD if measured.ranks is None else RANKS_SPREAD
    time = Interval.log_normal(loop, math.hypot(of_steps, measured.spread / 4, tokens.log_std))
    memory = Interval.log_normal(peak_memory(plan, measured, tokens.value), MEMORY_SPREAD)
    low, value, high = start.loss(tokens.high), start.loss(tokens.value), start.loss(tokens.low)
    loss = Interval(value.value, min(low.low, value.low), max(high.high, value.high), FORECAST_LEVEL)
    time = time.shifted(phases.total - loop)
    return _forecast(plan, measured, phases, Expected(tokens, time, memory, loss, start), settings, hosts)


def peak_memory(plan: TrainingPlan, measured: ProbeResult, tokens: float) -> float:
    """Return the bytes at the end of the run: they grow with every doubling of the steps as they did in the probe."""
    steps = tokens / plan.loop.tokens_per_step
    grown = measured.memory_growth * min(DOUBLINGS, math.log2(1 + steps / measured.steps))
    return measured.memory + grown + LOOP_MEMORY


def expected_tokens(
    plan: TrainingPlan, seconds_per_token: float, loss_at: Callable[[float], float], spent: float = 0.0
) -> Interval:
    """Return how many tokens the run will see: until it settles by the law, or until its budget is spent.

    No verdict is possible before the first that the rule allows.
    """
    loop, most = plan.loop, token_budget(plan, seconds_per_token, spent)
    settles = math.inf
    if loop.until_settled:
        tokens = loop.tokens_per_step * loop.warmup_steps * 4.0
        while tokens < min(most, 1e13) and 1 - loss_at(tokens * (1 + MORE)) / loss_at(tokens) > loop.tolerance:
            tokens *= 1.05
        settles = tokens * LATER_STOP
    return within_budget(plan, settling(plan, settles, STOP_SPREAD), seconds_per_token, spent)


def _curve_start(plan: TrainingPlan, corpus: Corpus, measured: ProbeResult) -> CurveStart:
    """Return what is known of the run's curve.

    What is forecast is the loss on text that no training and no choice reads: two samples differ, and texts too.
    """
    per_step = plan.loop.tokens_per_step
    seen = [Observation(measured.steps * per_step, measured.after, DECAY)]
    since, stderr = EARLY * plan.loop.warmup_steps * per_step, math.sqrt(2) * measured.stderr
    longest = plan.loop.longest_decay and float(plan.loop.longest_decay * per_step)
    facts, decay = CurveFacts.of(plan, corpus), plan.loop.decay_fraction
    return CurveStart(facts, seen, measured.offset, stderr, since, decay, longest, counted(corpus).shifts)


def _seconds_per_token(plan: TrainingPlan, measured: ProbeResult) -> float:
    """Return the seconds of step and evaluations together, over a run of usual length."""
    usual = 60 * plan.held_out_tokens * 9
    evaluations = _evaluations_before(plan.held_out_tokens, usual + 1)
    of_one = measured.ranks.evaluation if measured.ranks else measured.evaluation_seconds * EVALUATION_SLOWDOWN
    return measured.step / plan.loop.tokens_per_step + evaluations * plan.held_out_tokens * of_one / usual


# --- a pretrained model ---


@dataclass(frozen=True)
class TuningFacts:
    """What the forecast of a tuning run depends on beside its plan and its probe."""

    epoch: int  # tokens of an epoch that are put into the model
    most_tokens: float  # of as many passes as the objective takes
    judged: int  # held-out tokens
    trained: int  # numbers that are trained
    head: int  # numbers of the output table
    whole: bool  # whether every weight is trained
    recompute: bool
    labels: bool  # whether rows have a label each, which is learned

    @classmethod
    def of(cls, corpus: RowCorpus, model: Decoder, objective: Objective, whole: bool) -> "TuningFacts":
        """Return those of a model that is built."""
        return cls(
            epoch=corpus.train.num_inputs,
            most_tokens=float(corpus.train.num_tokens * objective.passes),
            judged=corpus.held_out.num_tokens,
            trained=sum(p.numel() for p in model.trainable().values()),
            head=model.options.vocab_size * model.options.layers[-1].width,
            whole=whole,
            recompute=bool(model.recompute),
            labels=objective.rows == "decision",
        )


def look_ahead_tuning(
    plan: TrainingPlan,
    facts: TuningFacts,
    measured: ProbeResult,
    settings: TuningSettings,
    around: tuple[float, float],
    events: Events,
    hosts: int = 1,
) -> tuple[TrainingPlan, Forecast]:
    """Forecast a tuning run by its probe. around: seconds since the command began, and of the comparison at the end.

    The returned plan keeps time for what follows the loop.
    """
    spent, comparison = around
    tokens = min(token_budget(plan, measured.step / plan.loop.tokens_per_step, spent), facts.most_tokens)
    steps = tokens / plan.loop.tokens_per_step
    judged = _finally_evaluated(plan, facts.judged, int(3 * plan.loop.tokens_per_step * steps / 20))
    adds = plan.num_parameters if facts.whole else facts.trained
    after = _after_loop(plan, measured, judged, adds)
    planned = Phases(spent, PROOF_STEPS * measured.step_seconds, 0.0, *after, comparison)
    plan, phases = keep_time(plan, planned, measured.step_seconds, measured.waiting)
    if phases.compare < min(planned.compare, COMPARISON_SHARE * (plan.loop.seconds or math.inf)):
        cut = f"is shortened to about {phases.compare:,.0f} s" if phases.compare else "is left out"
        events.emit(Say(text=f"the time has room for few steps: the comparison at the end {cut}"))
    return plan, forecast_tuning(plan, facts, measured, settings, phases, hosts)


def forecast_tuning(
    plan: TrainingPlan, facts: TuningFacts, measured: ProbeResult, settings: RunSettings, phases: Phases, hosts: int = 1
) -> Forecast:
    """Forecast the run of a pretrained model. `phases`: where the time goes; that of the loop is found here."""
    loop, per_token = plan.loop, measured.step / plan.loop.tokens_per_step
    settles = SETTLES_AFTER * facts.epoch
    if facts.labels:
        settles = max(LABELS_AFTER * facts.epoch, float(LABEL_STEPS * loop.tokens_per_step))
    around = settling(plan, settles, TUNING_STOP_SPREAD)
    tokens = within_budget(plan, around, per_token, phases.before + phases.proof)
    of_steps = tokens.value * per_token
    beside = 0.0 if measured.ranks is None else measured.ranks.beside
    per_token_read = measured.evaluation_seconds if measured.ranks is None else measured.ranks.evaluation
    evaluations = _evaluations(plan, tokens.value) * plan.held_out_tokens * per_token_read
    if loop.seconds:  # the evaluations are part of the loop's time
        evaluations = min(evaluations, of_steps * loop.evaluation_cost)
    phases = replace(phases, loop=of_steps + evaluations + beside)
    fixed = phases.total - of_steps
    seconds = of_steps + fixed
    unsure_steps = math.hypot(measured.spread / math.sqrt(measured.steps), tokens.log_std) * (1 - fixed / seconds)
    spread = TUNING_TIME_SPREAD if measured.ranks is None else RANKS_SPREAD
    time = Interval.log_normal(seconds, math.hypot(spread, unsure_steps))
    memory = Interval.log_normal(tuning_peak_memory(plan, facts, measured), TUNING_MEMORY_SPREAD)
    loss = label_loss(measured) if facts.labels else tuning_loss(plan, measured, tokens)
    start = TuningStart(math.sqrt(2) * measured.stderr / measured.after, loop.warmup_steps * loop.tokens_per_step)
    return _forecast(plan, measured, phases, Expected(tokens, time, memory, loss, start), settings, hosts)


def tuning_peak_memory(plan: TrainingPlan, facts: TuningFacts, measured: ProbeResult) -> float:
    """Return the bytes at the end of a tuning run, by those of its probe."""
    best = 4 * facts.trained if facts.whole else 0  # the best weights are kept beside the ones that are trained
    if not facts.recompute:
        return measured.memory * memory_growth(plan.dtype) + best
    # the proof multiplies by the output table in fp32, and the probe does not
    widened = 0 if facts.whole or plan.dtype == "float32" else 4 * facts.head
    return float(measured.memory + widened) + best


def memory_growth(dtype: str) -> float:
    """Return the peak memory of a whole tuning run ÷ that of its probe, by the type that is computed in."""
    return MEMORY_GROWTH if dtype == "float32" else HALF_MEMORY_GROWTH


def label_loss(measured: ProbeResult) -> Interval:
    """Forecast the loss of labels: nearly all of it goes where the text determines them, and none elsewhere."""
    low, value, high = (share * measured.before for share in LABELS_LEFT)
    return Interval(value, low, high, FORECAST_LEVEL)


def tuning_loss(plan: TrainingPlan, measured: ProbeResult, tokens: Interval) -> Interval:
    """Forecast the loss: the probe's fall goes on ever more slowly with the logarithm of the tokens.

    At the lower end, where rows are so alike that they are memorized, it falls by the same share again and again. A
    probe that saw more fall than is left has memorized much already: what is left of it then falls no faster than a
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


# --- both ---


@dataclass(frozen=True)
class Expected:
    """What a run is expected to reach, before its energy and its cost are known. `start`: of its curve."""

    tokens: Interval
    time: Interval
    memory: Interval
    loss: Interval
    start: CurveStart | TuningStart


def _forecast(
    plan: TrainingPlan, measured: ProbeResult, phases: Phases, expected: Expected, settings: RunSettings, hosts: int
) -> Forecast:
    """Return the forecast of what is expected, with the energy and the money that it takes on so many hosts."""
    tokens, time = expected.tokens, expected.time
    if plan.loop.seconds:
        time = budgeted_time(time, plan.loop.seconds)
    spread = math.hypot(time.log_std, power_spread(measured.watts_source))
    drawn = joules(time.value - phases.before, phases.loop, measured.watts, measured.ranks)
    energy = Interval.log_normal(drawn, spread)
    return Forecast(
        tokens=tokens,
        time=time,
        peak_memory=expected.memory,
        energy=energy,
        cost=cost_interval(energy, time, settings, hosts),
        loss=expected.loss,
        currency=settings.currency,
        watts_source=measured.watts_source,
        budgeted=budgeted(plan, tokens, time),
        phases=phases.to_json(),
        curve=expected.start.to_json(),
        gains=expected.start.gains(tokens.value),
    )


def _after_loop(plan: TrainingPlan, measured: ProbeResult, judged: float, adds: int) -> tuple[float, float]:
    """Return the seconds of the last evaluation, which reads `judged` tokens, and of the export of so many numbers."""
    per_token = measured.evaluation_seconds
    return per_token * judged, export_seconds(adds, per_token, plan.loop.threads, measured.waiting)


def _finally_evaluated(plan: TrainingPlan, held_out: int, affordable: float) -> float:
    """Return the held-out tokens that are read when the run ends: the sample once more, and what judges it.

    affordable: tokens of the text that judges, which has `held_out` tokens, for a run of this length (`LiveRun.judge`).
    """
    return plan.held_out_tokens + min(held_out, max(plan.held_out_tokens, affordable))


def _evaluations(plan: TrainingPlan, tokens: float) -> int:
    """Return how often a run of `tokens` tokens evaluates its held-out sample, at its beginning and end too."""
    return 2 + _evaluations_before(plan.held_out_tokens, min(tokens, 1e13), plan.loop.evaluation_cost)


def _evaluations_before(sample: int, end: float, cost: float = EVALUATION_COST) -> int:
    """Return how many evaluations of a held-out sample there are after the first, before token `end`."""
    at = number = 0
    while (at := next_evaluation(at, sample, cost)) < end:
        number += 1
    return number


def budgeted(plan: TrainingPlan, tokens: Interval, time: Interval) -> tuple[str, ...]:
    """Return the figures that the user gave: the run is expected to end by them."""
    loop = plan.loop
    by_steps = loop.max_steps is not None and tokens.value >= loop.max_steps * loop.tokens_per_step
    by_time = loop.seconds is not None and time.value >= (1 - SLACK) * loop.seconds - BUDGET_SECONDS
    return (("tokens",) if by_steps else ()) + (("time",) if by_time and not by_steps else ())


def token_budget(plan: TrainingPlan, seconds_per_token: float, spent: float = 0.0) -> float:
    """Return how many tokens the budgets of steps and time hold after `spent` seconds; infinite without one."""
    loop = plan.loop
    most = math.inf
    if loop.max_steps:
        most = loop.max_steps * loop.tokens_per_step
    seconds = loop_seconds(plan, spent, 0.0)
    return most if seconds is None else min(most, seconds / seconds_per_token)


def within_budget(plan: TrainingPlan, around: Interval, seconds_per_token: float, spent: float) -> Interval:
    """Return `around` tokens as far as the budgets go: steps are exact, time is as much as the machine makes of it."""
    most = token_budget(plan, seconds_per_token, spent)
    by_time = most < token_budget(plan.with_loop(seconds=None), seconds_per_token)
    limited = around.at_most(most)
    if not by_time or limited.high < most:
        return limited
    unsure = Interval.log_normal(most, PACE_SPREAD)
    return Interval(limited.value, min(limited.low, unsure.low), unsure.high, FORECAST_LEVEL)


def settling(plan: TrainingPlan, tokens: float, spread: float) -> Interval:
    """Return the tokens of a run, its decay included, whose verdict is expected after `tokens`.

    It never comes before the first that the rule allows. `spread`: relative, of the verdict's place.
    """
    earliest = first_verdict(plan)
    expected = min(max(tokens, earliest * BEYOND_FIRST), 1e13)
    around = Interval.log_normal(expected + decay_tokens(int(expected)), spread)
    return Interval(around.value, max(around.low, earliest + decay_tokens(earliest)), around.high, FORECAST_LEVEL)


def first_verdict(plan: TrainingPlan) -> int:
    """Return the tokens after which the run can be called settled at the earliest."""
    loop = plan.loop
    tokens = loop.warmup_steps * loop.tokens_per_step
    for _ in range(MIN_HISTORY):
        tokens = next_evaluation(tokens, plan.held_out_tokens, loop.evaluation_cost)
    return tokens


# --- energy and money ---


def power_spread(source: str) -> float:
    """Return the standard deviation of the logarithm of a run's watts ÷ those of its probe, by their source."""
    if source == "asked":
        return 0.0
    return COUNTED_POWER_SPREAD if source.startswith("measured") else ESTIMATED_POWER_SPREAD


def joules(seconds: float, loop: float, watts: float, ranks: RankCosts | None) -> float:
    """Return what a run draws in so many seconds, of which all ranks share those of its loop. watts: of rank 0."""
    return seconds * watts if ranks is None else max(0.0, seconds - loop) * watts + loop * ranks.watts


def cost(joules: float, seconds: float, price_per_kwh: float, price_per_hour: float) -> float:
    """Return the money for energy and for the machine's hours, in the unit of the prices."""
    return joules / 3.6e6 * price_per_kwh + seconds / 3600 * price_per_hour


def cost_interval(energy: Interval, time: Interval, settings: RunSettings, hosts: int = 1) -> Interval:
    """Return the cost of a run on so many hosts by its joules and its seconds, which are high together."""
    prices = settings.price_per_kwh, settings.price_per_hour * hosts
    value, low, high = (cost(joules, seconds, *prices) for joules, seconds in zip(energy.ends, time.ends, strict=True))
    return Interval(value, low, high, FORECAST_LEVEL)
