"""Checkpoints while a run goes well, and the return to one when a step fails."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from settle.base.errors import CheckpointError
from settle.base.event_log import Events
from settle.base.events import Rollback
from settle.base.run import Run
from settle.train.checkpoint import Checkpoint, CheckpointStore, Weights
from settle.train.state import LoopState, NamedBatch, NamedRow, RollbackNote
from settle.train.trainer import StepResult, Trainer
from settle.train.world.row_share import FILE, OrderLedger
from settle.train.world.weight_shards import ShardStore

MAX_ROLLBACKS = 5  # within one run: after that the recipe itself is at fault
SPIKE_WINDOW = 127  # training losses that are kept, and among which a spike is detected
MOST_NAMED_ROWS, MOST_CHARACTERS = 16, 80  # rows of a bad batch that are named, and characters of each


@dataclass(frozen=True)
class LoopSession:
    """What a process that works on a run gives the loop.

    identity: what else a resume must find unchanged, kept in each checkpoint. spending: seconds, joules and peak bytes
    of this session so far. decode: ids → text, to show the rows of a bad batch. elapsed: seconds since the run began,
    those of earlier sessions included; None: the loop's own seconds. judged: held-out tokens that are read after a loop
    of so many steps; None: that is not known. sample: called with the step and the moment
    ("start", "middle") at which a sample of what the model writes is wanted.
    """

    run: Run
    events: Events
    stopping: Callable[[], bool] = lambda: False
    identity: Mapping[str, object] = field(default_factory=dict)
    spending: Callable[[], dict[str, float]] = dict
    decode: Callable[[np.ndarray], str] = lambda ids: str(ids.tolist())
    elapsed: Callable[[], float] | None = None
    judged: Callable[[float], float] | None = None
    sample: Callable[[int, str], None] = lambda step, moment: None


class Recovery:
    """The checkpoints of one run.

    saved_step: of the newest one, when it holds the state as it is, else -1. order: the rows of the steps so far.
    """

    def __init__(self, trainer: Trainer, session: LoopSession) -> None:
        self.trainer, self.plan, self.session = trainer, trainer.plan, session
        self.events, self.world = session.events, trainer.world
        store = ShardStore if trainer.model.is_sharded else CheckpointStore
        self.store = store(session.run.checkpoints, self.plan.checkpoint_steps, session.events, self.world)
        self.order = OrderLedger(session.run.path / FILE, is_kept=self.world.rank == 0)
        self.saved_step = -1
        self._spent_before: dict[str, float] = {}  # by the sessions before this one

    # --- checkpoints ---

    def save(self, state: LoopState, best: Weights, wait: bool = True) -> bool:
        """Save the state; return False when the disk is full and someone asks to stop.

        wait: until it is on disk; otherwise a later save, or `resume`, does that.
        """
        if self.saved_step == state.step and (not wait or self.store.flush()):
            return True
        state.spent = self.spent()
        checkpoint = Checkpoint(
            step=state.step,
            model=self.trainer.own_weights(),
            optimizer=self.trainer.moments(),
            best=best if state.best_step != state.step or state.averaged is not None else None,
            state={"identity": self.session.identity, **state.to_json()},
        )
        self.order.sync()
        if not self.store.save(checkpoint, self.session.stopping, wait):
            return False
        self.saved_step = state.step
        return True

    def resume(self) -> tuple[LoopState, Weights] | None:
        """Load the newest checkpoint; return its state and best weights, or None when there is none."""
        newest = self.store.newest()
        self.order.cut(0 if newest is None else newest.step)
        if newest is None:
            return None
        state, best = self._restore(newest)
        self._spent_before, self.saved_step = state.spent, state.step
        return state, best

    def spent(self) -> dict[str, float]:
        """Seconds and joules of all sessions added up; of peak bytes the largest."""
        now = self.session.spending()
        before = {k: self._spent_before.get(k, 0.0) for k in now}
        return {k: max(before[k], v) if k == "peak_memory" else before[k] + v for k, v in now.items()}

    def _restore(self, checkpoint: Checkpoint) -> tuple[LoopState, Weights]:
        try:
            state = LoopState.from_json({k: v for k, v in checkpoint.state.items() if k != "identity"})
            self.trainer.load(checkpoint)
        except (KeyError, TypeError, ValueError, RuntimeError) as e:
            raise CheckpointError(
                f"checkpoint {checkpoint.step} does not fit this run: {e}", "it was made by another version or by hand"
            ) from None
        return state, dict(checkpoint.best if checkpoint.best is not None else checkpoint.model)

    # --- when a step goes wrong ---

    def steps_to_blame(self, state: LoopState, result: StepResult) -> int:
        """How many of the last steps, this one included, went wrong or may have caused it; 0 when all is well.

        Weights are checked when they are about to be kept, so that no checkpoint holds a broken one.
        """
        if not result.is_finite:
            return 1 if self.trainer.weights_are_finite() else 2
        astray = steps_astray(state.train_losses, result.loss)
        if astray:
            return astray + 1  # the update before the first bad loss is what led there
        is_kept = (state.step + 1) % self.plan.checkpoint_steps == 0 or state.step + 1 == state.schedule.end
        return 1 if is_kept and not self.trainer.weights_are_finite() else 0

    def roll_back(self, bad: LoopState, result: StepResult, blamed: int) -> tuple[LoopState, Weights]:
        """Go back before the last `blamed` steps and never draw their batches again; their rows are named.

        Only to a regular checkpoint: where one of an interruption lies must not change what comes of the run.
        """
        first = max(0, bad.step + 1 - blamed)
        positions = bad.last_drawn(min(blamed, bad.step + 1) * self.plan.micro_batches)
        checkpoint = self.store.newest(first)
        if checkpoint is None:
            raise CheckpointError(f"step {bad.step} went wrong and no checkpoint before it is left", "start again")
        state, best = self._restore(checkpoint)
        self.store.drop_after(checkpoint.step)
        self.order.cut(checkpoint.step)
        note = RollbackNote(
            step=bad.step,
            loss=str(result.loss),
            grad_norm=str(result.grad_norm),
            to_step=state.step,
            batches=[self._named(p) for p in positions],
        )
        state.rollbacks = [*bad.rollbacks, note]
        state.skipped = sorted({*bad.skipped, *positions})
        state.seconds = bad.seconds
        self.saved_step = -1
        self.events.emit(Rollback.model_validate(asdict(note)))
        if len(state.rollbacks) > MAX_ROLLBACKS:
            state.stop = "diverged"
        return state, best

    def _named(self, position: int) -> NamedBatch:
        rows, store, named = self.trainer.batches.rows_of(position), self.trainer.batches.store, []
        for document, start, stop in rows[:MOST_NAMED_ROWS]:
            text = self.session.decode(store.document(document)[start:stop][:MOST_CHARACTERS])[:MOST_CHARACTERS]
            named.append(NamedRow(document, store.origin(document), start, stop, text))
        return NamedBatch(position, len(rows), named)


def steps_astray(before: Sequence[float], loss: float) -> int:
    """Count the steps, the last included, in which the training loss has been astray; 0 if it is not.

    A spike differs from a hard batch in that it stays: three steps in a row that are more than 8 robust standard
    deviations (1.4826 × median absolute deviation) and more than a tenth above the median of the 64 steps before them.
    A loss that is not a number counts at once. `before` (any length): the losses of the steps before.
    """
    stay, window = 3, 64
    if not math.isfinite(loss):
        return 1
    if len(before) < window + stay - 1:
        return 0
    recent = [*before[1 - stay :], loss]
    calm = before[1 - stay - window : 1 - stay]
    middle = statistics.median(calm)
    if min(recent) <= middle:
        return 0
    deviation = 1.4826 * statistics.median(abs(other - middle) for other in calm)
    return stay if min(recent) > middle + max(8 * deviation, 0.1 * abs(middle)) else 0
