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


def _answer(values: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _limit(asked: dict[str, object]) -> None:
    """Limit private memory to `limit` bytes in all, or to `free` beside what it holds now."""
    limit, free = asked.get("limit"), asked.get("free")
    if isinstance(limit, int):
        limit_data(limit)
    elif isinstance(free, int):
        limit_data(held_data() + free)


def _take(trainer: Trainer, step: int) -> dict[str, object]:
    """Take one step, after which the weights are as they were."""
    try:
        loss = trainer.take_step(LoopState(position=step * trainer.plan.micro_batches), 0.0).loss
        return {"missing": None, "held": held_data(), "loss": loss if math.isfinite(loss) else None}
    except (MemoryError, RuntimeError) as e:
        missing = missing_bytes(e)
        if missing is None:
            raise
        return {"missing": missing, "held": held_data(), "loss": None}
    finally:
        trainer.model.zero_grad(set_to_none=True)
        gc.collect()


def main() -> None:
    asked = json.loads(sys.stdin.readline())
    run = Run(Path(asked["folder"]))
    run.path.mkdir(parents=True, exist_ok=True)
    context = planned_run(asked["command"], asked["recipe"], run)
    plan = changed_plan(context.plan, asked.get("micro_batches"), asked.get("recompute"))
    trainer = LiveRun.build(plan, context.corpus, context.base).trainer()
    built = held_data()
    _limit(asked)
    steps = largest_steps(trainer, asked["steps"])
    whole = plan.loop.tokens_per_step if plan.tuning is None else plan.tuning.rows * plan.loop.micro_batches
    least = plan.loop.sequence_length if plan.tuning is None else 1
    _answer({"whole": whole, "least": least, "parts": plan.loop.micro_batches, "built": built, "steps": steps})
    for line in sys.stdin:
        _answer(_take(trainer, json.loads(line)["step"]))


if __name__ == "__main__":
    main()
