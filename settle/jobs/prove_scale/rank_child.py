"""One rank of a run that only trains: `python -m settle.jobs.prove_scale.rank_child RUN STEP STORE`.

RUN is a folder with a plan.json; the rank stops after STEP, with a checkpoint from which any number of ranks continues.
Which rank it is, the variables of torchrun say. STORE is a file in which the ranks find each other, so that none has to
listen where other machines could connect.
"""

import contextlib
import sys
from pathlib import Path

from torch.distributed import FileStore  # type: ignore[attr-defined]  # it is there

from settle.base.errors import SettleError
from settle.base.event_log import Events
from settle.base.run import Run
from settle.base.run.launcher import launched, leave
from settle.data.prepare import prepared
from settle.jobs.ranks.crew import gather, joined
from settle.train.live_run import LiveRun
from settle.train.training_plan import TrainingPlan


def train(run: Run, until: int, place: str) -> None:
    """Run the loop of a run to its end, or to the step `until`. Raises SettleError."""
    launch = launched()
    rank = 0 if launch is None else launch.rank
    record = run.read("plan.json")
    corpus = prepared(str(record["corpus"]))
    assert corpus is not None, "whoever wrote the plan prepared the data"
    with contextlib.ExitStack() as closing:
        if launch is not None and launch.size > 1:
            crew = closing.enter_context(joined(launch, {}, Events(), FileStore(place, launch.size)))
            if rank:
                crew.wait_for_run()
        live = LiveRun.build(TrainingPlan.from_json(record), corpus)
        live.join(gather(live, run))
        events = Events(run.events if rank == 0 else None)
        closing.callback(events.close)
        loop = live.loop(run, events, lambda: loop.state.step >= until)
        loop.train()


def main() -> int:
    try:
        train(Run(Path(sys.argv[1])), int(sys.argv[2]), sys.argv[3])
    except SettleError as e:
        sys.stderr.write(f"{e}\n")
        return e.exit_code
    return 0


if __name__ == "__main__":
    leave(main())
