"""A whole training run forecast: device-hours, weeks, failures and the chance to finish by a date.

A steady rate is not a run. Published runs got two thirds of the forecast one in the median, four fifths of them between
0.4 and 1.1 of it: failures, evaluation, restarts, longer sequences at the end and passes that nobody reports take the
rest, and the forecast errs. The share and its spread come from those runs (published_runs.toml), so the forecast says
what runs of this kind took, not what a clean one would.

A failure stops every device, so the rate grows with their number. Between failures a run loses the pauses of its
checkpoints, the work since the last one, and the time until it computes again.

Legend: d pause of a checkpoint, M mean time between failures of the whole run, R time from a failure to work, t time
between two checkpoints; all in seconds.
"""

import functools
import math
import random
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from settle.base.errors import ResourceError
from settle.base.statistics import FORECAST_LEVEL, Interval
from settle.base.words.amounts import billions, device_gigabytes, millions
from settle.machine.described_machine import Machine
from settle.plan.cluster.throughput import DeviceLayout, Rate, Shape, steady_rate
from settle.plan.cost import drawn_ends
from settle.plan.memory_model import Sizing, device_sizing

# --- layouts ---

USABLE = 0.94  # of a device's memory: the rest goes to fragments of the allocator
MOST_ROWS, MOST_PIPELINE, MOST_TENSOR = 16, 64, 8
ROUNDING = 1.5  # of a batch to whole micro-batches
LONG = 32768  # tokens of a sequence from which it is split over devices
# Tokens of a batch by the weights of a model, as published runs chose them (GPT-3 and Llama papers).
BATCHES = ((0.5e9, 0.5e6), (3e9, 1e6), (20e9, 2e6), (100e9, 4e6), (math.inf, 16e6))


@dataclass(frozen=True)
class RankedLayout:
    layout: DeviceLayout
    rate: Rate
    memory: Sizing


def usual_batch(parameters: float) -> float:
    """Tokens of a global batch that runs of this size use."""
    return next(tokens for limit, tokens in BATCHES if parameters <= limit)


def best_layouts(
    shape: Shape,
    machine: Machine,
    batch_tokens: float,
    sequence: int = 4096,
    precision: str = "bf16",
    number: int = 3,
    grows: float = 4.0,
) -> list[RankedLayout]:
    """Return the fastest layouts that fit, one for each grouping of the devices.

    grows: what the batch may grow by so that every replica has a sequence. Raises ResourceError where none fits, saying
    how much memory the smallest one takes.
    """
    found: dict[tuple[int, ...], RankedLayout] = {}
    least = math.inf
    for layout in _layouts(shape, machine, batch_tokens, sequence):
        if layout.tokens_per_step > grows * batch_tokens * ROUNDING:
            continue
        memory = device_sizing(shape, layout)
        least = min(least, memory.total)
        if memory.total > USABLE * machine.memory:
            continue
        rate = steady_rate(shape, machine, layout, precision)
        groups = (layout.tensor, layout.pipeline, layout.context, layout.expert, int(layout.sharded))
        if groups not in found or rate.tokens.value > found[groups].rate.tokens.value:
            found[groups] = RankedLayout(layout, rate, memory)
    if not found and math.isinf(least):
        what = f"{machine.count:,} devices have no work in a batch of {millions(batch_tokens)} tokens"
        raise ResourceError(what, "take fewer devices, or a larger batch: --batch-tokens")
    if not found:
        what = f"training {billions(shape.parameters)} weights takes {device_gigabytes(least)} a device at least"
        fix = f"{machine.label}: a device holds {device_gigabytes(machine.memory)}; take more devices, or larger ones"
        raise ResourceError(what, fix)
    return sorted(found.values(), key=lambda c: -c.rate.tokens.value)[:number]


def _layouts(shape: Shape, machine: Machine, batch_tokens: float, sequence: int) -> Iterator[DeviceLayout]:
    devices = machine.count
    for tensor in _powers(min(MOST_TENSOR, machine.node, shape.kv_heads)):
        for context in _powers(max(1, sequence // LONG)):
            for pipeline in _powers(min(MOST_PIPELINE, shape.layers // 2)):
                replicas, rest = divmod(devices, tensor * context * pipeline)
                if rest or not replicas:
                    continue
                grouping = DeviceLayout(replicas, tensor, pipeline, context, sequence=sequence)
                yield from _batches(shape, grouping, batch_tokens)


def _batches(shape: Shape, grouping: DeviceLayout, batch_tokens: float) -> Iterator[DeviceLayout]:
    sequences = batch_tokens / grouping.sequence / grouping.data
    for rows in _powers(min(MOST_ROWS, max(1, int(sequences)))):
        micro = max(1, round(sequences / rows))
        for expert in _expert_groups(shape, grouping):
            for recompute in (False, True):
                layout = replace(
                    grouping, rows=rows, micro_batches=micro, expert=expert, recompute=recompute, sharded=False
                )
                chunks = _powers(max(1, shape.layers // grouping.pipeline // 2)) if grouping.pipeline > 1 else [1]
                for virtual in chunks:
                    yield replace(layout, virtual=min(virtual, 8))
                if grouping.pipeline == 1 and grouping.data > 1:
                    yield replace(layout, sharded=True)


def _expert_groups(shape: Shape, grouping: DeviceLayout) -> list[int]:
    if not shape.experts:
        return [1]
    most = min(shape.experts, grouping.data * grouping.context * grouping.tensor, 64)
    return [size for size in _powers(most) if shape.experts % size == 0]


def _powers(most: int) -> list[int]:
    return [2**i for i in range(max(1, most).bit_length())]


# --- failures ---

HOUR, DAY = 3600.0, 86400.0

# Unplanned interruptions of a device: Llama 3 405B, 419 in 54 days of 16,384 H100 (arXiv 2407.21783). OPT-175B had 15.6
# a thousand node-days on 124 nodes of 8 A100 (2 a day), Meta's clusters 2.3 and 6.5 (arXiv 2410.21680): 0.29 to 1.95 a
# thousand device-days. The spread covers these four.
PER_DEVICE_DAY = 0.474e-3
LOG_STD_RATE = 0.7
# From a failure to work: Olmo Hybrid under 4 minutes in the median on 512 B200; Llama 3 about 9 minutes, which its 90 %
# of effective time leave; people who restart by hand took hours (OPT: 59 % uptime).
RECOVERY = Interval(600.0, 240.0, 1800.0, FORECAST_LEVEL)
RECOVERY_BY_HAND = Interval(2.5 * 3600, 3600.0, 6 * 3600.0, FORECAST_LEVEL)
CHECKPOINT_BYTES = 13.0  # a weight: BLOOM, 2.3 TB of 176 G weights
PAUSE_PER_TB = 17.4  # seconds: BLOOM saved 2.3 TB in 40 s, with nothing hidden
LEAST_PAUSE = 2.0
DRAWS = 2000  # of what is uncertain
WRITERS = 48  # nodes that saved it; more nodes write more at once


@dataclass(frozen=True)
class Goodput:
    failures: Interval  # expected in the whole run
    between: float  # mean seconds from one to the next
    checkpoint_every: float  # seconds
    pause: float  # seconds of one checkpoint
    checkpoint_bytes: float
    share: Interval  # of the time that is work
    lost: dict[str, float]  # share of the time that is not, by cause


def checkpoint_pause(parameters: float, devices: int) -> float:
    """Seconds that saving weights and optimizer state stops the run, written by all nodes at once."""
    terabytes = CHECKPOINT_BYTES * parameters / 1e12
    return max(LEAST_PAUSE, PAUSE_PER_TB * terabytes * min(1.0, WRITERS * 8 / max(8, devices)))


def best_interval(pause: float, between: float) -> float:
    """Seconds between checkpoints that lose the least: Daly's higher-order optimum, Young's formula in its first term.

    Source: Daly, A higher order estimate of the optimum checkpoint interval (2006), equation 37.
    """
    if pause >= 2 * between:
        return between
    ratio = pause / (2 * between)
    return math.sqrt(2 * pause * between) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - pause


def work_share(pause: float, between: float, recovery: float, every: float | None = None) -> float:
    """Share of the time that is work, with failures that come independently of each other.

    Source: Daly (2006), equation 20: the time for t of work is M e^(R/M) (e^((t + d)/M) - 1).
    """
    every = best_interval(pause, between) if every is None else every
    reach = (every + pause) / between
    if reach + recovery / between > 50:
        return 0.0
    return every / (between * math.exp(recovery / between) * math.expm1(reach))


def goodput(
    parameters: float,
    devices: int,
    work_seconds: float,
    *,
    per_device_day: float | None = None,
    by_hand: bool = False,
) -> Goodput:
    """Return what failures take of a run that works for `work_seconds`; per_device_day: of a cluster, where known.

    The interval carries the uncertainty of the rate and of the recovery; the checkpoint interval stays at the best one
    for the expected rate, since it has to be chosen before.
    """
    rate = per_device_day or PER_DEVICE_DAY
    spread = 0.2 if per_device_day else LOG_STD_RATE
    recovery = RECOVERY_BY_HAND if by_hand else RECOVERY
    between = DAY / (rate * devices)
    pause = checkpoint_pause(parameters, devices)
    every = best_interval(pause, between)
    rng = random.Random(0)
    shares = [
        work_share(
            pause,
            between * math.exp(rng.gauss(0, spread)),
            recovery.value * math.exp(rng.gauss(0, recovery.log_std)),
            every,
        )
        for _ in range(DRAWS)
    ]
    share = Interval(work_share(pause, between, recovery.value, every), *drawn_ends(shares), FORECAST_LEVEL)
    wall = work_seconds / max(share.value, 1e-9)
    number = wall / between
    low, high = drawn_ends([_poisson(rng, number * math.exp(rng.gauss(0, spread))) for _ in range(DRAWS)])
    saving = pause / (every + pause) * share.value
    restarting = min(1 - share.value, recovery.value / between)
    lost = {
        "checkpoints": saving,
        "recovery": restarting,
        "work done again": max(0.0, 1 - share.value - saving - restarting),
    }
    return Goodput(
        failures=Interval(number, low, high, FORECAST_LEVEL),
        between=between,
        checkpoint_every=every,
        pause=pause,
        checkpoint_bytes=CHECKPOINT_BYTES * parameters,
        share=share,
        lost=lost,
    )


def _poisson(rng: random.Random, mean: float) -> float:
    """Draw a number of events: exact for small means, by the normal limit for large ones."""
    if mean > 100:
        return max(0.0, round(rng.gauss(mean, math.sqrt(mean))))
    limit, count, product = math.exp(-mean), 0, rng.random()
    while product > limit:
        product *= rng.random()
        count += 1
    return float(count)


# --- the run ---

GROWS = 4.0  # what a batch that nobody asked for may grow by, for many devices
# The ends of the interval, in logarithms, over those of the runs that the shares come from: makers differ by more than
# runs of one maker do (bench/planning_runs.py leaves each maker out).
STRETCH = 1.3


class _Run(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    log_share: float  # logarithm of its tokens a device-hour over the steady rate's, less what is explained
    source: str


class PublishedRuns(BaseModel):
    """What published runs took, as a share of their steady rate.

    The logarithm of that share is `centre`, and `slope` times the logarithm of the active weights over `size`, and
    `experts` where experts are mixed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    date: str
    centre: float
    slope: float
    experts: float
    size: float = Field(gt=0)
    runs: tuple[_Run, ...] = Field(min_length=20)


@functools.cache
def published_runs() -> PublishedRuns:
    with Path(__file__).with_name("published_runs.toml").open("rb") as file:
        return PublishedRuns.model_validate(tomllib.load(file))


@dataclass(frozen=True)
class RunForecast:
    layouts: tuple[RankedLayout, ...]  # the fastest that fit, best first
    tokens: float
    devices: int
    batch_tokens: float
    clean_hours: float  # of one device, were there nothing but steady steps
    device_hours: Interval  # with what published runs took beside
    days: Interval
    failures: Goodput  # of the whole run at its expected length

    def chance_within(self, days: float) -> float:
        """Return the share of such runs that have finished after so many days."""
        logs = [run.log_share for run in published_runs().runs]
        needed = math.log(self.device_hours.value / (days * 24 * self.devices))
        return sum(log >= needed for log in logs) / len(logs)


def forecast_run(
    shape: Shape,
    tokens: float,
    machine: Machine,
    *,
    batch_tokens: float | None = None,
    sequence: int = 4096,
    precision: str = "bf16",
    per_device_day: float | None = None,
    by_hand: bool = False,
) -> RunForecast:
    """Forecast training on so many tokens. Raises ResourceError where no layout fits."""
    batch = batch_tokens or usual_batch(shape.parameters)
    grows = 1.0 if batch_tokens else GROWS
    layouts = best_layouts(shape, machine, batch, sequence, precision, grows=grows)
    batch = layouts[0].layout.tokens_per_step
    clean = tokens / layouts[0].rate.tokens.value / HOUR
    hours = device_hours(shape, clean)
    days = hours.scaled(1 / machine.count / 24)
    failures = goodput(
        shape.parameters, machine.count, clean * HOUR / machine.count, per_device_day=per_device_day, by_hand=by_hand
    )
    return RunForecast(tuple(layouts), tokens, machine.count, batch, clean, hours, days, failures)


def device_hours(shape: Shape, clean: float) -> Interval:
    """Return what runs took whose steady steps alone would have taken `clean` device-hours."""
    runs = published_runs()
    centre = runs.centre + runs.slope * math.log(shape.active_parameters / runs.size)
    centre += runs.experts if shape.experts else 0.0
    low, high = share_ends(tuple(sorted(run.log_share for run in runs.runs)))
    expected = clean / math.exp(centre)
    return Interval(expected, expected / math.exp(high), expected / math.exp(low), FORECAST_LEVEL)


def share_ends(logs: tuple[float, ...], level: float = FORECAST_LEVEL) -> tuple[float, float]:
    """Return the interval that a further run of the same kind falls in with probability `level`.

    logs: sorted logarithms of shares.

    Source: the order statistics of Vovk et al., Algorithmic Learning in a Random World (2005): of n exchangeable values
    the next lies below the k-th with probability k / (n + 1). Between two of them the line is taken.
    """
    edge = (1 - level) / 2
    return STRETCH * _order(logs, edge), STRETCH * _order(logs, 1 - edge)


def _order(logs: tuple[float, ...], probability: float) -> float:
    place = probability * (len(logs) + 1) - 1
    below = max(0, min(len(logs) - 2, math.floor(place)))
    part = min(1.0, max(0.0, place - below))
    return logs[below] + part * (logs[below + 1] - logs[below])
