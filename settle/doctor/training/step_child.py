"""Training steps of a run in a process of their own, which may take no more memory than the run could.

Reads one JSON line that says which run (see `Steps`), answers one once the model is ready, and then takes a step for
each line: `{"step": n}` → `{"missing": bytes or null, "held": bytes, "loss": nats or null}`.
"""

import gc
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

from settle.base.out_of_memory import held_data, limit_data, missing_bytes
from settle.base.run import Run
from settle.doctor.training.limited_steps import Ready, Steps, Taken
from settle.jobs.short_run import planned_run
from settle.train.live_run import LiveRun
from settle.train.state import LoopState
from settle.train.trainer import Trainer
from settle.train.training_plan import TrainingPlan

MOST_STEPS = 400  # of a run, among which the largest are searched


def changed_plan(plan: TrainingPlan, micro_batches: int | None, recompute: int | None) -> TrainingPlan:
    """Return the plan with its steps in that many parts, and layers computed again or not."""
    parts = micro_batches or plan.loop.micro_batches
    if plan.tuning is not None:
        rows = plan.tuning.rows * plan.loop.micro_batches // parts
        again = plan.tuning.recompute if recompute is None else recompute
        plan = replace(plan, tuning=replace(plan.tuning, rows=rows, recompute=again))
    return plan.with_loop(micro_batches=parts)


def largest_steps(trainer: Trainer, steps: int) -> list[int]:
    """Return the run's steps, those first in which most goes through the model at once."""
    parts = trainer.plan.micro_batches

    def size(step: int) -> int:
        batches = [trainer.batches.rows_of(step * parts + part) for part in range(parts)]
        return max(sum(stop - start for _, start, stop in rows) for rows in batches)

    return sorted(range(min(steps, MOST_STEPS)), key=lambda step: (-size(step), step))


def _answer(values: Ready | Taken) -> None:
    sys.stdout.write(json.dumps(values._asdict()) + "\n")
    sys.stdout.flush()


def _take(trainer: Trainer, step: int) -> Taken:
    """Take one step, after which the weights are as they were."""
    try:
        loss = trainer.take_step(LoopState(position=step * trainer.plan.micro_batches), 0.0).loss
        return Taken(None, held_data(), loss if math.isfinite(loss) else None)
    except (MemoryError, RuntimeError) as e:
        missing = missing_bytes(e)
        if missing is None:
            raise
        return Taken(missing, held_data(), None)
    finally:
        trainer.model.zero_grad(set_to_none=True)
        gc.collect()


def main() -> None:
    asked = Steps(**json.loads(sys.stdin.readline()))
    run = Run(Path(asked.folder))
    run.path.mkdir(parents=True, exist_ok=True)
    context = planned_run(asked.command, asked.recipe, run)
    plan = changed_plan(context.plan, asked.micro_batches, asked.recompute)
    trainer = LiveRun.build(plan, context.corpus, context.base).trainer()
    built = held_data()
    if asked.limit is not None:
        limit_data(asked.limit)
    elif asked.free is not None:
        limit_data(held_data() + asked.free)
    steps = largest_steps(trainer, asked.steps)
    whole = plan.loop.tokens_per_step if plan.tuning is None else plan.tuning.rows * plan.loop.micro_batches
    least = plan.loop.sequence_length if plan.tuning is None else 1
    _answer(Ready(whole, least, plan.loop.micro_batches, built, steps))
    for line in sys.stdin:
        _answer(_take(trainer, json.loads(line)["step"]))


if __name__ == "__main__":
    main()
