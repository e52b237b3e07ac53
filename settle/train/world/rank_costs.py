"""What a step of all ranks together costs, measured before a run begins: they train for a few steps as the run will.

Every rank has the planned model, the run's own batches and the loop itself, with its meetings, evaluations and saves.
"""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from settle.base.event_log import Events
from settle.base.events import Eval, Event, Step
from settle.base.run import Run
from settle.machine import EnergyMeter
from settle.train.live_run import LiveRun, blocks
from settle.train.training_plan import TrainingPlan
from settle.train.world import World

SECONDS = 6.0  # that the steps should take, at one process's pace
FEWEST, MOST = 12, 300  # steps
PARTS = 3  # of the steps: a save follows the first and the second
LONGEST, FEW = 20.0, 4  # seconds of the fewest steps; where they would take longer, so many without a save
HELD_OUT_TOKENS = 32_768  # that are evaluated once, at most
NEVER = 1e-9  # share of the computing time of evaluations between the first step and the last
TRIMMED = 0.05  # share of the steps, at each end, that say nothing of the others


@dataclass(frozen=True)
class RankCosts:
    """What a run costs all ranks together.

    step: seconds, with its share of the saves; spread: standard deviation of a step, as a share of it. evaluation:
    seconds per held-out token. beside: seconds that a loop takes whatever its length, without its evaluations: until
    the ranks have met, the first steps, two saves. watts: of all ranks while they train.
    """

    step: float
    spread: float
    evaluation: float
    beside: float
    watts: float

    def loop(self, steps: float, evaluations: float) -> float:
        """Seconds of a loop. evaluations: held-out tokens of all of them."""
        return self.beside + steps * self.step + evaluations * self.evaluation

    def words(self, size: int, alone: float) -> str:
        """Say what they are. alone: seconds of one process's step."""
        share = f"{100 * self.step / alone:.0f} % of one process's time"
        return f"a step of {size} ranks takes {1000 * self.step:,.1f} ms, {share}"


class Ranks:
    """The processes that a run is shared among; here one alone."""

    @property
    def size(self) -> int:
        return 1

    @property
    def hosts(self) -> int:
        """Machines that they run on."""
        return 1

    def rehearse(self, live: LiveRun, steps: int, watts: float | None) -> RankCosts:
        """Measure what the steps of a plan cost on all ranks, by some of them.

        live: this rank's; its weights change. watts: power of each host, where the user gives it. Raises RunError where
        a rank cannot take part.
        """
        raise NotImplementedError


ONE = Ranks()


def rehearsal_steps(step_seconds: float, budget: float | None) -> int:
    """How many steps are rehearsed. step_seconds: of one process; budget: seconds that they may take, if any."""
    if FEWEST * step_seconds > (budget or LONGEST):
        return FEW
    number = min(SECONDS, budget or SECONDS) / max(step_seconds, 1e-6)
    return PARTS * round(max(FEWEST, min(MOST, number)) / PARTS)


def rehearse(live: LiveRun, world: World, folder: Path, steps: int, watts: float | None) -> RankCosts:
    """Train on all ranks, each of which calls this. live: of the run's plan. folder: of all ranks, for checkpoints."""
    plan, clock, run = _rehearsal(live.plan, steps), _Clock(), Run(folder)
    events = Events(listeners=[clock])
    rehearsed = replace(live, plan=plan, selection=blocks(plan, live.corpus.selection, plan.held_out_tokens))
    meter, began = EnergyMeter(watts, plan.device), time.perf_counter()
    rehearsed.join(world)
    if world.rank == 0:
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        events.move_to(run.events)
    rehearsed.loop(run, events, lambda: False).train()
    seconds = time.perf_counter() - began
    joules = sum(world.each(lambda: meter.read().joules))
    tokens = sum(len(batch.targets) for batch in rehearsed.selection)
    step, save, spread = _step(clock.gaps, plan)
    beside = max(0.0, seconds - steps * step - (PARTS - 1) * save - 2 * clock.evaluation)
    whole = step + save / live.plan.loop.checkpoint_steps
    return RankCosts(whole, spread, clock.evaluation / tokens, beside, joules / seconds)


def _rehearsal(plan: TrainingPlan, steps: int) -> TrainingPlan:
    """Return the plan of so many steps, which ends with them and evaluates before and after them."""
    plan = plan.with_loop(
        max_steps=steps,
        seconds=None,
        warmup_steps=min(plan.loop.warmup_steps, max(1, steps // 4)),
        until_settled=False,
        most_passes=None,
        evaluation_cost=NEVER,
        checkpoint_steps=steps if steps < FEWEST else steps // PARTS,
    )
    return replace(plan, held_out_tokens=min(plan.held_out_tokens, HELD_OUT_TOKENS))


def _step(gaps: np.ndarray, plan: TrainingPlan) -> tuple[float, float, float]:
    """Return the seconds of a step and of a save, and the spread of steps as a share.

    gaps: (steps - 1,) seconds from one step's end to the next one's.
    """
    every = plan.loop.checkpoint_steps
    saves = list(range(every - 1, len(gaps), every))  # the gaps in which the training waits for a save
    first = every // 2 if saves else 1  # the steps before it find their memory and their kernels
    if plan.loop.is_sharded:  # and what follows a save is written beside the training
        clean = gaps[first : every - 1]
        windows = [gaps[at : at + every] for at in saves]
    else:
        clean = np.delete(gaps, saves)[first:]
        windows = [gaps[at : at + 1] for at in saves]
    step = _centre(clean)
    each = [window.sum() - len(window) * step for window in windows]
    save = max(0.0, float(np.mean(each))) if each else 0.0
    return step, save, float(clean.std()) / step


def _centre(times: np.ndarray) -> float:
    """Their mean without the shortest and the longest ones."""
    cut = round(TRIMMED * len(times))
    return float(np.sort(times)[cut : len(times) - cut].mean())


@dataclass
class _Clock:
    """Hears when steps end. evaluation: seconds of the last one."""

    ends: list[float] = field(default_factory=list)
    evaluation: float = 0.0

    def __call__(self, event: Event) -> None:
        now = time.perf_counter()
        if isinstance(event, Step):
            self.ends.append(now)
        elif isinstance(event, Eval) and self.ends:
            self.evaluation = now - self.ends[-1]

    @property
    def gaps(self) -> np.ndarray:
        return np.diff(self.ends)
