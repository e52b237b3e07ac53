"""What a run's time goes to, planned before it begins: seconds of each phase that follows the probe.

A time budget is for all of it. What comes after the loop is kept free: evaluation, export and gate at the speed that
the probe saw, and a share for the comparison, which fits itself into what is left (settle/evaluate). The constants here
are estimates; what a phase took beside them is remembered on each machine, and the next run is planned by it.
"""

import math
import time
from dataclasses import dataclass, replace

from settle.base.errors import UsageError
from settle.machine.measurement_cache import key, note, others_are_busy, recalled
from settle.train.training_plan import TrainingPlan
from settle.train.watch import MOST_SLOWDOWN, SLACK

# 2026-11-27, bench/budget.py: what export and gate take beyond the work of the model itself, and in forward passes
EXPORT_SECONDS = 3.0  # starting llama.cpp twice, the card and the picture
EXPORT_SECONDS_PER_BYTE = 4e-9  # of the weights in fp32: written twice, hashed and read again
GATE_TOKENS = 6_000  # tokens that the live model reads for the gate
# a comparison: loading both models, in llama.cpp and here
COMPARISON_SECONDS, LOADING_SECONDS_PER_PARAMETER = 3.0, 2e-8
# tokens that are written and read beside the rows: both models' answers to the instructions, of three quarters of their
# length, and the familiar text (settle/evaluate/compare); their prompts, and the text read by both
WRITTEN_BESIDE, READ_BESIDE = 2 * 40 * 120 + 24 * 64, 2 * 40 * 50 + 2 * 24 * 80
WRITTEN_TOGETHER = 8  # answers that llama.cpp writes at the same time
WRITING_PASSES = 2.0  # a token that it writes takes as long as so many that are read here at once, where memory is fast
WRITTEN_BYTES = 2.0  # read from memory for each parameter and each step of the answers written together
COMPARISON_SHARE = 0.25  # of a time budget, at most
SHORTEST_COMPARISON = 10.0  # seconds: in less it would say nothing
EXPORT = "export"  # name of the stage
PHASE = "phase "  # before the name of a phase in the machine's measurements
MOST_CORRECTION = 8.0  # times that a phase took as long as its estimate, or as short
NEWEST = 0.5  # weight of the latest run in what is remembered, in the logarithm
LEAST_STEPS = 20  # a time budget should have room for so many
FEWEST_STEPS = 10  # and is refused where it has room for fewer
WARMUP_SHARE = 0.1  # of the steps that a time budget has room for, at most


@dataclass(frozen=True)
class Phases:
    """Seconds of each phase: those before the loop are spent, the others are planned."""

    before: float  # reading, pruning and the probe, spent already
    proof: float
    loop: float
    judge: float
    export: float
    compare: float = 0.0

    def to_json(self) -> dict[str, float]:
        """Return the seconds by the name of the stage."""
        return {name: round(seconds, 1) for name, seconds in vars(self).items() if seconds > 0}

    @property
    def total(self) -> float:
        return self.before + self.proof + self.loop + self.after_loop + self.compare

    @property
    def after_loop(self) -> float:
        """Seconds that follow the loop and cannot be made shorter."""
        return self.judge + self.export


def export_seconds(num_parameters: int, evaluation_seconds: float, threads: int, waiting: float = 1.0) -> float:
    """Return the seconds of export and gate.

    evaluation_seconds: of a forward pass, per token; threads: that it had; waiting: how many times longer than alone
    work took on this machine meanwhile.
    """
    alone = EXPORT_SECONDS + EXPORT_SECONDS_PER_BYTE * 4 * num_parameters
    return (beside_others(alone, waiting) + GATE_TOKENS * evaluation_seconds) * correction(EXPORT, threads)


def beside_others(alone: float, waiting: float) -> float:
    """Return the seconds of work that takes `alone` seconds on an idle machine.

    Much of it comes in short pieces and in processes of its own, which wait half as long as a training step does.
    """
    return alone * (1 + (waiting - 1) / 2)


class Waiting:
    """How many times longer than alone work takes here from its creation on.

    Seconds by the clock ÷ those that the processor gave this thread; 1 on another device, which is waited for.
    """

    def __init__(self, device: str) -> None:
        self._is_cpu = device == "cpu"
        self._began, self._worked = time.monotonic(), time.thread_time()

    def read(self) -> float:
        worked = time.thread_time() - self._worked
        if not self._is_cpu or worked <= 0:
            return 1.0
        return min(MOST_SLOWDOWN, max(1.0, (time.monotonic() - self._began) / worked))


def comparison_seconds(
    rows: int, prompt: float, answer: float, evaluation_seconds: float, num_parameters: int, bandwidth: float
) -> float:
    """Return the seconds of a whole comparison: two models answer rows, follow instructions and read.

    rows: of `prompt` and `answer` tokens. evaluation_seconds: of a forward pass, per token. bandwidth: bytes per second
    that memory is read at.
    """
    loading = COMPARISON_SECONDS + LOADING_SECONDS_PER_PARAMETER * num_parameters
    written, read = 2 * rows * answer + WRITTEN_BESIDE, 2 * rows * prompt + READ_BESIDE
    of_weights = WRITTEN_BYTES * num_parameters / bandwidth / WRITTEN_TOGETHER
    return loading + max(WRITING_PASSES * evaluation_seconds, of_weights) * written + evaluation_seconds * read


def correction(phase: str, threads: int) -> float:
    """Return what the phase took on this machine in earlier runs ÷ its estimate; 1 without any."""
    known = recalled(key("cpu", threads), PHASE + phase)
    return float(known) if isinstance(known, int | float) and math.isfinite(known) and known > 0 else 1.0


def remember(phase: str, threads: int, planned: float, took: float) -> None:
    """Correct the next estimate of the phase by what it took here.

    planned: by the estimate with the correction until now. Nothing is learned while other programs keep the machine
    busy.
    """
    if planned <= 0 or took <= 0 or others_are_busy():
        return
    machine, known = key("cpu", threads), correction(phase, threads)
    is_first = recalled(machine, PHASE + phase) is None
    value = known * (took / planned) ** (1.0 if is_first else NEWEST)
    note(machine, PHASE + phase, min(MOST_CORRECTION, max(1 / MOST_CORRECTION, value)))


def loop_seconds(plan: TrainingPlan, spent: float, proof: float) -> float | None:
    """Return what a time budget leaves for the loop; None without one."""
    loop = plan.loop
    if not loop.seconds:
        return None
    kept = SLACK * loop.seconds + loop.seconds_after + loop.seconds_comparing
    return max(loop.step_seconds, loop.seconds - spent - proof - kept)


def with_phases(
    plan: TrainingPlan, after: float, comparison: float, step_seconds: float, judging: float = 0.0, waiting: float = 1.0
) -> TrainingPlan:
    """Return the plan with the time that is kept for what follows the loop.

    judging: of `after`, the last evaluations; waiting: as in `export_seconds`.
    """
    loop = plan.loop
    if not loop.seconds:
        return plan
    comparison = min(comparison, COMPARISON_SHARE * loop.seconds)
    steps = ((1 - SLACK) * loop.seconds - after - comparison) / max(step_seconds, 1e-9)
    return plan.with_loop(
        seconds_after=after,
        seconds_judging=judging,
        waiting=waiting,
        seconds_comparing=comparison,
        step_seconds=step_seconds,
        warmup_steps=min(loop.warmup_steps, max(1, round(WARMUP_SHARE * steps))),
    )


def keep_time(
    plan: TrainingPlan, phases: Phases, step_seconds: float, waiting: float = 1.0
) -> tuple[TrainingPlan, Phases]:
    """Keep time in the plan for what is around the loop; with a time budget the comparison takes no more than is left.

    step_seconds: of this process alone; waiting: as in `export_seconds`.
    """
    plan = with_phases(plan, phases.after_loop, phases.compare, step_seconds, phases.judge, waiting)
    if not plan.loop.seconds:
        return plan, phases
    plan = give_way(plan, phases.before, phases.proof)
    return plan, replace(phases, compare=plan.loop.seconds_comparing)


def give_way(plan: TrainingPlan, spent: float, proof: float) -> TrainingPlan:
    """Return the plan with a shorter comparison, or none, where the loop has too few steps to learn in."""
    loop = plan.loop
    room = loop_seconds(plan, spent, proof)
    if room is None or not loop.seconds_comparing:
        return plan
    missing = LEAST_STEPS * loop.step_seconds - room
    kept = loop.seconds_comparing - max(0.0, missing)
    kept = 0.0 if kept < SHORTEST_COMPARISON else kept
    return plan.with_loop(seconds_comparing=kept) if missing > 0 else plan


def too_short(plan: TrainingPlan, seconds: float, models: float = 1.0, before: float = 0.0) -> str | None:
    """Return the warning for a time budget that leaves the loop only so many seconds; None when it has room to learn.

    models: for how many the time is that the user gave, of which the plan has one's. before: seconds of loading and
    reading, which are many where Python compiles all modules first. Raises UsageError when it leaves next to nothing.
    """
    loop = plan.loop
    if not loop.seconds or not loop.step_seconds or seconds >= LEAST_STEPS * loop.step_seconds:
        return None
    steps = max(1, int(seconds / loop.step_seconds))
    needed = models * (loop.seconds + 2 * LEAST_STEPS * loop.step_seconds - seconds)
    what = (
        f"the time has room for about {steps} step{'s' if steps > 1 else ''} of training: everything else takes "
        f"{loop.seconds - seconds:,.0f} s"
    )
    what += f", {before:,.0f} s of it loading and reading, less the next time" if before > loop.seconds / 4 else ""
    enough = f"--time {60 * -(-needed // 60) / 60:.0f}m"
    if steps < FEWEST_STEPS:
        raise UsageError(f"{what}, so nothing would be learned", f"give {enough}, or --steps instead of a time")
    return f"{what}; {enough} would be enough to begin with"
