"""A short real training of the planned model: what it costs per step here, what it holds, how fast it learns."""

import dataclasses
import math
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from settle.base.event_log import Events
from settle.base.events import Event, Progress, Step
from settle.base.run import Run
from settle.data.batches import held_out_batches
from settle.data.prepare import Corpus
from settle.machine import EnergyMeter, PeakMemory, resident
from settle.plan.phases import Waiting
from settle.train.evaluation import HeldOut, evaluate
from settle.train.live_run import EVALUATION_BLOCK, LiveRun, blocks
from settle.train.training_plan import TrainingPlan
from settle.train.world.rank_costs import RankCosts

SHARE = 0.025  # share of the run's steps
FEWEST, MOST = 40, 400  # steps; a short run is probed for a tenth of its steps at most
SHARE_OF_TIME = 0.05  # share of a time budget
DECAY = 0.4  # share of the probe in which the learning rate falls to zero, as at the end of a run
EVALUATED_TOKENS = 32768  # held-out tokens, or as many as were trained on: a third of the probe's time


@dataclass(frozen=True)
class Probe:
    """Times in seconds, sizes in bytes, losses in nats per token of held-out text."""

    steps: int
    tokens: int
    step_seconds: float  # one optimizer step, on average
    evaluation_seconds: float  # one evaluation per held-out token
    step_spread: float  # standard deviation of a step's time, as a share of it
    memory: int  # most held by the process while training
    memory_growth: int  # what that rose by over the last doubling of the steps
    watts: float  # drawn on average
    watts_source: str  # asked, measured or estimated
    loss: float
    stderr: float
    offset: float  # ln of the loss on the run's own held-out sample ÷ `loss`
    threads: int = 1
    waiting: float = 1.0  # times longer than alone the steps took
    why_threads: str = ""  # empty where somebody asked for the number
    ranks: RankCosts | None = None  # of all ranks together, whose steps `step_seconds` and `step_spread` then are


def probe_steps(expected_steps: int) -> int:
    """Length of the probe for a run of `expected_steps`."""
    return max(4, min(MOST, max(FEWEST, round(SHARE * expected_steps)), expected_steps // 10))


def probe(
    plan: TrainingPlan, corpus: Corpus, most_steps: int, watts: float | None = None, report: Events | None = None
) -> Probe:
    """Train the plan's model for `most_steps` on a schedule of its own, and look at more held-out text at the end.

    A time budget may end it earlier. `watts`: what the machine draws, when the person says so. `report`: receives the
    progress.
    """
    plan = plan.with_loop(
        max_steps=most_steps,
        seconds=plan.loop.seconds and plan.loop.seconds * SHARE_OF_TIME,
        warmup_steps=min(plan.loop.warmup_steps, max(1, most_steps // 4)),
        decay_fraction=DECAY,
        until_settled=False,
        checkpoint_steps=most_steps + 1,
    )
    loop = plan.loop
    job = LiveRun.build(dataclasses.replace(plan, held_out_tokens=EVALUATION_BLOCK), corpus)
    job.choose_threads()
    times: list[float] = []
    peaks: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, Step):
            times.append(loop.tokens_per_step / event.tokens_per_second)
            peaks.append(peak.read())
            if report is not None:
                report.emit(Progress(what="probe", done=event.step, total=most_steps, unit="steps"))

    peak, meter, waiting = PeakMemory().start(), EnergyMeter(watts, plan.device).start(), Waiting(plan.device)
    with tempfile.TemporaryDirectory(prefix="settle-probe-") as folder:
        run = Run(Path(folder))
        run.checkpoints.mkdir()
        steps = job.loop(run, Events(listeners=[listen]), lambda: False).train().state.step
    waited, energy = waiting.read(), meter.read()
    if report is not None:
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
    return Probe(
        threads=job.plan.loop.threads,
        waiting=waited,
        why_threads=job.plan.why.get("threads", ""),
        steps=steps,
        tokens=steps * loop.tokens_per_step,
        step_seconds=statistics.fmean(settled_times),
        step_spread=statistics.pstdev(settled_times) / statistics.fmean(settled_times),
        evaluation_seconds=evaluation_seconds / held_out.num_tokens,
        memory=max(peaks[-1], resident()),
        memory_growth=peaks[-1] - peaks[len(peaks) // 2],
        watts=energy.watts,
        watts_source=energy.source,
        loss=evaluation.loss,
        stderr=evaluation.stderr,
        offset=math.log(on_own / evaluation.loss),
    )
