"""What a run will need and reach, before it begins: memory, time, energy, money and final loss, with 80 % intervals.

Costs come from a short real training of the planned model (settle/plan/probe.py); the loss from those of two of them,
and from what recorded runs say of learning curves (settle/plan/loss_curve.py).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from settle.base.errors import ResourceError
from settle.base.event_log import Events
from settle.base.events import Say
from settle.base.statistics import FORECAST_LEVEL, Interval, two_sided_z
from settle.data.prepare import Corpus
from settle.machine import memory, resident
from settle.model.architectures import Architecture
from settle.model.layers.attention import keeps_no_probabilities
from settle.plan.forecast_figures import BUDGET_SECONDS, Forecast, budgeted_time
from settle.plan.loss_curve import CurveFacts, Observation
from settle.plan.outlook import SETTLED_DECAY, CurveStart
from settle.plan.phases import Phases, export_seconds, loop_seconds, with_phases
from settle.plan.probe import DECAY, SHARE_OF_TIME, Probe, probe, probe_steps
from settle.plan.settings import RunSettings, TrainingSettings
from settle.train.live_run import LiveRun
from settle.train.optimizers import Optimizer
from settle.train.settled import EVALUATION_COST, MIN_HISTORY, decay_tokens, next_evaluation
from settle.train.settled.trend import MORE
from settle.train.training_plan import TrainingPlan
from settle.train.watch import SLACK
from settle.train.world.rank_costs import ONE, RankCosts, Ranks, rehearsal_steps

# 2026-11-25, runs on one machine: standard deviations of the logarithm of actual ÷ forecast
TIME_SPREAD = 0.08
RANKS_SPREAD = 0.15  # 2026-11-29, of ranks, which wait for the slowest in every step, on a machine that others use too
MEMORY_SPREAD = 0.05
COUNTED_POWER_SPREAD = 0.15
ESTIMATED_POWER_SPREAD = math.log(12 / 4) / 2 / two_sided_z(FORECAST_LEVEL)  # a core draws 4 to 12 W (machine/power.py)
DOUBLINGS = 6.0  # the kernels' cache grows this long, as batches have ever new shapes
PACE_SPREAD = 0.15  # of the tokens that a time budget has room for: how busy the machine will be is not known
PROOF_SECONDS, PROOF_STEPS = 1.0, 3.0  # the proof takes so long, and as long as so many steps
SHORTER, FEWEST_SHORTER = 3, 12  # a probe is preceded by one of a third of its steps, if that is at least so many
WEIGHT = 4  # bytes of a trained number, of its gradient, and of a sum over ranks
EARLY = 2.0  # warm-ups after which the evaluations of a run say how it will go on
STOP_SPREAD = 0.5  # relative spread of the tokens at which a run settles
BEYOND_FIRST = 1.15  # a run that could settle at once gets its verdict so much after the first that is possible
LATER_STOP = 1.5  # the verdict comes this much later than it is true (bench/settled.py)
EVALUATION_SLOWDOWN = 1.25  # times slower evaluations are in a run than in a row


def look_ahead(
    plan: TrainingPlan,
    corpus: Corpus,
    settings: TrainingSettings,
    elapsed: Callable[[], float],
    events: Events,
    ranks: Ranks = ONE,
) -> tuple[TrainingPlan, Forecast]:
    """Probe the plan and forecast it. `elapsed`: seconds since the command began; `ranks`: that will share it.

    The plan handed back keeps time for what follows the loop. Raises ResourceError, before anything is allocated, when
    the run would not fit in memory.
    """
    must_fit(plan)
    expected_steps = plan.loop.max_steps or 50 * plan.loop.warmup_steps
    steps = probe_steps(expected_steps)
    shorter = [probe(plan, corpus, steps // SHORTER, settings.watts)] if steps >= SHORTER * FEWEST_SHORTER else []
    probed = probe(plan, corpus, steps, settings.watts, events)
    if probed.why_threads:
        plan = plan.with_threads(probed.threads, probed.why_threads)
    alone = probed.step_seconds
    if ranks.size > 1:
        steps = rehearsal_steps(alone, plan.loop.seconds and plan.loop.seconds * SHARE_OF_TIME)
        costs = ranks.rehearse(LiveRun.build(plan, corpus), steps, settings.watts)
        events.emit(Say(text=costs.words(ranks.size, alone)))
        probed = replace(probed, step_seconds=costs.step, step_spread=costs.spread, ranks=costs)
    spent, held = elapsed(), resident()
    judge = probed.evaluation_seconds * _finally_evaluated(plan, corpus, probed, spent)
    export = export_seconds(plan.num_parameters, probed.evaluation_seconds, plan.loop.threads, probed.waiting)
    plan = with_phases(plan, judge + export, 0.0, alone, judge, probed.waiting)
    proof = PROOF_SECONDS + PROOF_STEPS * alone
    phases = Phases(spent, proof, loop_seconds(plan, spent, proof) or 0.0, judge, export)
    probes = [Observation(p.tokens, p.loss, DECAY) for p in (*shorter, probed) if p.tokens <= probed.tokens]
    # what is forecast is the loss on text that nothing reads before the end: two samples differ
    since = EARLY * plan.loop.warmup_steps * plan.loop.tokens_per_step
    stderr, decay = math.sqrt(2) * probed.stderr, plan.loop.decay_fraction
    start = CurveStart(CurveFacts.of(plan, corpus), probes, probed.offset, stderr, since, decay)
    expected = forecast(plan, start, probed, settings, phases, ranks.hosts)
    # what the forecast of the loss took after the probe's memory was read stays with the process
    expected = replace(expected, peak_memory=expected.peak_memory.shifted(max(0, resident() - held)))
    return plan, expected


def _finally_evaluated(plan: TrainingPlan, corpus: Corpus, probed: Probe, spent: float) -> float:
    """Held-out tokens that are read when the run ends: the sample once more, and what `LiveRun.judge` reads."""
    tokens = min(token_budget(plan, _seconds_per_token(plan, probed), spent), 60.0 * 9 * plan.held_out_tokens)
    return plan.held_out_tokens + min(corpus.held_out.num_tokens, max(plan.held_out_tokens, 3 * tokens / 20))


def forecast(
    plan: TrainingPlan,
    start: CurveStart,
    probed: Probe,
    settings: TrainingSettings,
    phases: Phases,
    hosts: int = 1,
) -> Forecast:
    """`phases`: where the time goes; that of the loop is found here unless a time budget says it."""
    per_token = _seconds_per_token(plan, probed)
    spent = phases.before
    tokens = expected_tokens(plan, per_token, lambda t: start.loss(t).value, spent + phases.proof)
    if tokens.value < token_budget(plan, per_token, spent + phases.proof):
        start = replace(start, decay=SETTLED_DECAY)  # it is expected to end by its verdict
    phases = replace(phases, loop=_loop_seconds(plan, probed, tokens.value, per_token))
    fixed = phases.total - phases.loop
    # a machine whose steps are uneven now will be busy or quiet later
    of_steps = TIME_SPREAD if probed.ranks is None else RANKS_SPREAD
    spread = math.hypot(of_steps, probed.step_spread / 4, tokens.log_std)
    time = Interval.log_normal(phases.loop, spread).shifted(fixed)
    if plan.loop.seconds:
        time = budgeted_time(time, plan.loop.seconds)
    spread = math.hypot(time.log_std, power_spread(probed.watts_source))
    energy = Interval.log_normal(joules(time.value - spent, phases.loop, probed.watts, probed.ranks), spread)
    low, value, high = start.loss(tokens.high), start.loss(tokens.value), start.loss(tokens.low)
    return Forecast(
        tokens=tokens,
        time=time,
        peak_memory=Interval.log_normal(peak_memory(plan, probed, tokens.value), MEMORY_SPREAD),
        energy=energy,
        cost=cost_interval(energy, time, settings, hosts),
        loss=Interval(value.value, min(low.low, value.low), max(high.high, value.high), FORECAST_LEVEL),
        currency=settings.currency,
        watts_source=probed.watts_source,
        budgeted=budgeted(plan, tokens, time),
        phases=phases.to_json(),
        curve=start.to_json(),
    )


def budgeted(plan: TrainingPlan, tokens: Interval, time: Interval) -> tuple[str, ...]:
    """The figures that the person gave: the run is expected to end by them."""
    loop = plan.loop
    by_steps = loop.max_steps is not None and tokens.value >= loop.max_steps * loop.tokens_per_step
    by_time = loop.seconds is not None and time.value >= (1 - SLACK) * loop.seconds - BUDGET_SECONDS
    return (("tokens",) if by_steps else ()) + (("time",) if by_time and not by_steps else ())


def peak_memory(plan: TrainingPlan, probed: Probe, tokens: float) -> float:
    """Bytes at the end of the run: it grows with every doubling of the steps as it did in the probe."""
    steps = tokens / plan.loop.tokens_per_step
    return probed.memory + probed.memory_growth * min(DOUBLINGS, math.log2(1 + steps / probed.steps))


def cost(joules: float, seconds: float, price_per_kwh: float, price_per_hour: float) -> float:
    """Money for energy and for the machine's hours, in the unit of the prices."""
    return joules / 3.6e6 * price_per_kwh + seconds / 3600 * price_per_hour


def cost_interval(energy: Interval, time: Interval, settings: RunSettings, hosts: int = 1) -> Interval:
    """The cost of a run that takes `energy` joules and `time` seconds, which are high together, on so many hosts."""
    prices = settings.price_per_kwh, settings.price_per_hour * hosts
    value, low, high = (cost(joules, seconds, *prices) for joules, seconds in zip(energy.ends, time.ends, strict=True))
    return Interval(value, low, high, FORECAST_LEVEL)


def power_spread(source: str) -> float:
    """Standard deviation of the logarithm of the watts that a run draws ÷ those of its probe, by their source."""
    if source == "asked":
        return 0.0
    return COUNTED_POWER_SPREAD if source.startswith("measured") else ESTIMATED_POWER_SPREAD


def token_budget(plan: TrainingPlan, seconds_per_token: float, spent: float = 0.0) -> float:
    """How many tokens the budgets of steps and time have room for after `spent` seconds; infinite without one."""
    loop = plan.loop
    most = math.inf
    if loop.max_steps:
        most = loop.max_steps * loop.tokens_per_step
    seconds = loop_seconds(plan, spent, 0.0)
    return most if seconds is None else min(most, seconds / seconds_per_token)


def within_budget(plan: TrainingPlan, around: Interval, seconds_per_token: float, spent: float) -> Interval:
    """`around` tokens, as far as the budgets go: a number of steps is exact, time is as many as the machine makes."""
    most = token_budget(plan, seconds_per_token, spent)
    by_time = most < token_budget(plan.with_loop(seconds=None), seconds_per_token)
    limited = around.at_most(most)
    if not by_time or limited.high < most:
        return limited
    unsure = Interval.log_normal(most, PACE_SPREAD)
    return Interval(limited.value, min(limited.low, unsure.low), unsure.high, FORECAST_LEVEL)


def expected_tokens(
    plan: TrainingPlan, seconds_per_token: float, loss_at: Callable[[float], float], spent: float = 0.0
) -> Interval:
    """How many tokens the run will see: where it should settle by the law, but not before a verdict is possible, or
    what its budget holds."""
    loop, most = plan.loop, token_budget(plan, seconds_per_token, spent)
    settles = math.inf
    if loop.until_settled:
        tokens = loop.tokens_per_step * loop.warmup_steps * 4.0
        while tokens < min(most, 1e13) and 1 - loss_at(tokens * (1 + MORE)) / loss_at(tokens) > loop.tolerance:
            tokens *= 1.05
        settles = tokens * LATER_STOP
    return within_budget(plan, settling(plan, settles, STOP_SPREAD), seconds_per_token, spent)


def settling(plan: TrainingPlan, tokens: float, spread: float) -> Interval:
    """Tokens of a run, its decay included, whose verdict is expected after `tokens`: never before the first that the
    rule allows. `spread`: relative, of the verdict's place."""
    earliest = first_verdict(plan)
    expected = min(max(tokens, earliest * BEYOND_FIRST), 1e13)
    around = Interval.log_normal(expected + decay_tokens(int(expected)), spread)
    return Interval(around.value, max(around.low, earliest + decay_tokens(earliest)), around.high, FORECAST_LEVEL)


def first_verdict(plan: TrainingPlan) -> int:
    """The tokens after which the run can be called settled at the earliest."""
    loop = plan.loop
    tokens = loop.warmup_steps * loop.tokens_per_step
    for _ in range(MIN_HISTORY):
        tokens = next_evaluation(tokens, plan.held_out_tokens, loop.evaluation_cost)
    return tokens


def _seconds_per_token(plan: TrainingPlan, probed: Probe) -> float:
    """Step and evaluations together, over a run of usual length."""
    loop = plan.loop
    evaluations = sum(1 for _ in _evaluations(plan.held_out_tokens, 60 * plan.held_out_tokens * 9))
    of_one = probed.ranks.evaluation if probed.ranks else probed.evaluation_seconds * EVALUATION_SLOWDOWN
    evaluation_seconds = evaluations * plan.held_out_tokens * of_one / (60 * plan.held_out_tokens * 9)
    return probed.step_seconds / loop.tokens_per_step + evaluation_seconds


def _loop_seconds(plan: TrainingPlan, probed: Probe, tokens: float, per_token: float) -> float:
    """Seconds of so many tokens of training; of ranks with the evaluations of just this length, and how it begins."""
    if probed.ranks is None:
        return tokens * per_token
    evaluations = 2 + sum(
        1 for _ in _evaluations(plan.held_out_tokens, min(tokens, 1e13) - 1, plan.loop.evaluation_cost)
    )
    return probed.ranks.loop(tokens / plan.loop.tokens_per_step, evaluations * plan.held_out_tokens)


def joules(seconds: float, loop: float, watts: float, ranks: RankCosts | None) -> float:
    """What a run draws in so many seconds, of which all ranks share those of its loop. watts: of rank 0."""
    return seconds * watts if ranks is None else max(0.0, seconds - loop) * watts + loop * ranks.watts


def _evaluations(sample: int, until: float, cost: float = EVALUATION_COST) -> Iterator[int]:
    at = 0
    while (at := next_evaluation(at, sample, cost)) <= until:
        yield at


def must_fit(plan: TrainingPlan) -> None:
    """Raises ResourceError, before anything is allocated, when the run will not fit in memory; proposes what will.

    Weights, gradients, optimizer state, the best weights, a checkpoint being made, activations of one micro-batch.
    """
    if plan.device != "cpu":
        return
    need, have = resident() + needed(plan), memory().available
    if need <= have + resident():
        return
    scale = (have * 0.8) / max(1, needed(plan))
    architecture = Architecture.make(plan.architecture_name, plan.architecture)
    fits = int(architecture.num_parameters * scale)
    raise ResourceError(
        f"this run needs about {need / 1e9:,.1f} GB of memory and {have / 1e9:,.1f} GB are free",
        _what_fits(plan, architecture.num_parameters, fits),
    )


def _what_fits(plan: TrainingPlan, parameters: int, fits: int) -> str:
    """What to ask for instead: a shorter context where that was asked for, else a smaller model."""
    if plan.origin.get("context") not in (None, "default", "derived", "measured") or fits >= parameters:
        return "ask for a shorter --context, or fewer --batch-tokens"
    shown = f"{fits // 1_000_000}M" if fits >= 1_000_000 else f"{max(1, fits // 1000)}k"
    return f"--size {shown} would fit, or fewer --batch-tokens"


def needed(plan: TrainingPlan) -> int:
    """Bytes that training takes beyond what the process holds already."""
    architecture = Architecture.make(plan.architecture_name, plan.architecture)
    optimizer = Optimizer.make(plan.optimizer_name, plan.optimizer)
    number = 4 if plan.dtype == "float32" else 2
    parameters = architecture.num_parameters
    state = optimizer.bytes_per_parameter()
    cast = 0 if number == 4 else number
    weights = parameters * (4 + 4 + state + cast + 4 + (4 + state))
    micro = plan.loop.tokens_per_step // plan.loop.micro_batches
    context = plan.loop.sequence_length
    is_flash = keeps_no_probabilities(plan.device, plan.dtype)
    return int(weights + micro * architecture.activation_bytes_per_token(context, number, is_flash=is_flash))


@dataclass(frozen=True)
class RankMemory:
    """Bytes that a rank holds at most. device: where it computes. host: beside a card, in the host's memory."""

    device: float
    host: float = 0.0

    def words(self, size: int) -> str:
        """What is said of it. size: number of ranks."""
        beside = f" on its card and {self.host / 1e6:,.0f} MB of its host's memory" if self.host else ""
        return f"each of {size} ranks needs about {self.device / 1e6:,.0f} MB{beside} for the model while it trains"


def rank_memory(plan: TrainingPlan, size: int, host_size: int | None = None) -> RankMemory:
    """What one of `size` ranks holds at most while it trains, beyond what the process holds before the model.
    host_size: ranks of a host, among which a hybrid plan shares out the weights.

    Its rows of weights, gradients, optimizer state and best weights, and the copy that a save writes; what is whole at
    once; and activations.
    """
    architecture = Architecture.make(plan.architecture_name, plan.architecture)
    optimizer = Optimizer.make(plan.optimizer_name, plan.optimizer)
    number = WEIGHT if plan.dtype == "float32" else 2
    shapes = architecture.parameters()
    layers = Counter[int]()
    for name, shape in shapes.items():
        if ".layers." in name:
            layers[int(name.split(".layers.")[1].split(".")[0])] += math.prod(shape)
    layer, total = max(layers.values()), sum(map(math.prod, shapes.values()))
    among = (host_size or size) if plan.loop.is_hybrid else size
    state = optimizer.bytes_per_parameter()
    # weights, gradients and state; then as much again: best weights, and a save's copy of weights and state
    trained = kept = total / among * (2 * WEIGHT + state)
    # tables: as they came and as they are read, their gradient, and that of the loss on the way to it
    tables = (total - layers.total()) * (3 * number + 2 * WEIGHT)
    # two layers, since the next one is on its way, one of them as it came; folded weights; gradients, and their sum
    whole = layer * (5 * number + 2 * WEIGHT)
    step = optimizer.bytes_of_step(Counter(architecture.linears().values()), among)
    loop = plan.loop
    micro = loop.tokens_per_step // loop.micro_batches
    tokens = min(micro, max(loop.sequence_length, micro / size))  # a row stays whole
    is_flash = keeps_no_probabilities(plan.device, plan.dtype)
    activations = tokens * architecture.activation_bytes_per_token(loop.sequence_length, number, is_flash=is_flash)
    once = tables + whole + activations
    if plan.device == "cpu":
        return RankMemory(trained + kept + max(once, step))
    if loop.offloads:
        return RankMemory(once, trained + kept + step)
    return RankMemory(trained + max(once, step), kept)
