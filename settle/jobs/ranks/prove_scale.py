"""Proof that any number of ranks trains the same model: the same order of rows and the same losses."""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.distributed import FileStore  # type: ignore[attr-defined]  # it is there

from settle.base.errors import EngineError, SettleError, UsageError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady, Say
from settle.base.files import home, write_json
from settle.base.python_command import module_command
from settle.base.run import Run
from settle.base.run.course import RunCourse
from settle.base.run.launcher import launched, leave
from settle.data.prepare import Corpus, prepare, prepared
from settle.jobs.ranks.crew import gather, joined
from settle.jobs.settings import TrainSettings
from settle.machine import cores
from settle.plan.training_plan import plan_training
from settle.train import checkpoint as checkpoints
from settle.train.live_run import LiveRun
from settle.train.training_plan import TrainingPlan
from settle.train.world.row_share import FILE, Order, Row, check_order

MOST_RELATIVE = 1e-5  # of a loss from that of one rank: what another order of sums in float32 may change
CHANGES = 4  # times that the number of ranks changes on the way
MOST_RANKS = 64
CHILD = "settle.jobs.ranks.prove_scale"
CHECKPOINTS = 8  # of a run
STEPS, SIZE = 100, "100k"  # of a run, where none are asked for


@dataclass(frozen=True)
class RankTrial:
    """What one run gave. losses: of each evaluation by its step; speed: tokens per second, the median step's."""

    name: str
    losses: dict[int, float]
    order: bytes
    speed: float
    weights: bytes

    def worst(self, alone: "RankTrial") -> float:
        """Return the largest relative difference of a loss from that of one rank; inf where one is missing."""
        if self.losses.keys() != alone.losses.keys():
            return float("inf")
        return max(abs(loss - alone.losses[step]) / alone.losses[step] for step, loss in self.losses.items())


def prove_scale(asked: TrainSettings, ranks: str, events: Events) -> int:
    """Train the same plan on each number of ranks, and on a number that changes on the way; show the table.

    The exit code is 1 where they do not agree. Raises SettleError.
    """
    settings = TrainSettings(
        inputs=asked.inputs, steps=asked.steps or STEPS, size=asked.size or SIZE, batch_tokens=asked.batch_tokens,
        seed=asked.seed, dtype="float32", device="cpu", threads=asked.threads, sharding=asked.sharding,
    )  # fmt: skip
    settings.check("train")
    sizes = sorted({1, *parse_ranks(ranks)})
    with tempfile.TemporaryDirectory(prefix=".prove-scale-", dir=home()) as folder:
        corpus = prepare(settings.inputs, settings.data, events)
        plan = _plan(settings, corpus)
        steps = plan.loop.max_steps or 0
        maker = _Trials(Path(folder), plan, corpus, events)
        trials = {size: maker.run(f"{size} ranks" if size > 1 else "1 rank", [(size, steps)]) for size in sizes}
        most = sizes[-1]
        again = maker.run(f"{most} ranks once more", [(most, steps)])
        changed = maker.run("a number that changes on the way", _changes(sizes, steps))
        order = maker.order()
    alone = trials[1]
    rows = [_row(trial, alone, size) for size, trial in trials.items()] + [_row(changed, alone, None)]
    columns = ("ranks", "largest difference of a loss", "order of rows", "tokens/s", "÷ one rank")
    is_same = again.weights == trials[most].weights
    epoch = (
        "every token equally often" if order.most == order.least else f"every token {order.least} or {order.most} times"
    )
    note = f"{len(alone.losses)} evaluations in {steps} steps; bar {MOST_RELATIVE:.0e}; {epoch}"
    events.emit(Listing(title="the same plan on any number of ranks", columns=columns, rows=rows, note=note))
    verb = "are the same to the last bit" if is_same else "DIFFER"
    events.emit(Say(text=f"the weights of two runs on {most} ranks {verb}"))
    passed = is_same and order.most - order.least <= 1
    passed = passed and all(_agrees(trial, alone) for trial in (*trials.values(), changed))
    events.emit(_result(trials, changed, alone, order, is_same, passed))
    return 0 if passed else 1


def parse_ranks(text: str) -> list[int]:
    """Return "1,2,4" as numbers. Raises UsageError."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdigit() and 0 < int(part) <= MOST_RANKS for part in parts):
        raise UsageError(
            f"--prove-scale {text} is not a list of numbers of ranks",
            f"give numbers with commas between them, such as 1,2,3,4; {MOST_RANKS} at most",
        )
    return [int(part) for part in parts]


def _plan(settings: TrainSettings, corpus: Corpus) -> TrainingPlan:
    """Return a plan that ends by its steps alone, with evaluations all along."""
    plan = plan_training(settings, {}, corpus, 0.0)
    every = max(1, (plan.loop.max_steps or 0) // CHECKPOINTS)
    return plan.with_loop(until_settled=False, checkpoint_steps=every, evaluation_cost=1.0)


def _changes(sizes: Sequence[int], steps: int) -> list[tuple[int, int]]:
    """Numbers of ranks with the steps at which they stop: 2 → 1 → 3 → 2 and so on."""
    others = [size for size in sizes if size > 1] or [1]
    turn = [others[0], 1, others[-1], others[0], 1]
    stops = [round(steps * (number + 1) / (CHANGES + 1)) for number in range(CHANGES)] + [steps]
    return [(size, stop) for size, stop in zip(turn, stops, strict=True) if stop]


class _Trials:
    """Runs of one plan, each in a folder of its own."""

    def __init__(self, folder: Path, plan: TrainingPlan, corpus: Corpus, events: Events) -> None:
        self.folder, self.plan, self.corpus, self.events = folder, plan, corpus, events
        self.latest = Run(folder)

    def run(self, name: str, parts: Sequence[tuple[int, int]]) -> RankTrial:
        """Run the plan in parts, each of which ends at a step and is trained by a number of ranks."""
        self.events.emit(Say(text=name))
        run = self.latest = Run(self.folder / name.replace(" ", "-"))
        run.checkpoints.mkdir(parents=True)
        write_json(run.path / "plan.json", {**self.plan.to_json(), "corpus": self.corpus.fingerprint})
        for size, until in parts:
            _start(run, size, until)
        course = RunCourse.read(run.events)
        newest = checkpoints.steps(run.checkpoints)[-1]
        weights = b"".join(file.read_bytes() for file in sorted(newest.glob("*.safetensors")))
        speeds = [step.tokens_per_second for step in course.steps]
        losses = {e.step: e.loss for e in course.evals}
        return RankTrial(name, losses, (run.path / FILE).read_bytes(), statistics.median(speeds), weights)

    def order(self) -> Order:
        """Return what the ledger of the latest run proves. Raises RunError."""
        starts = self.corpus.train.document_starts

        def tokens(row: Row) -> Iterator[int]:
            document, begin, end = row
            return iter(range(int(starts[document]) + begin, int(starts[document]) + end))

        batches = LiveRun.build(self.plan, self.corpus).batches
        return check_order(self.latest.path / FILE, batches.rows_of, tokens, self.corpus.train.num_tokens)


def _start(run: Run, size: int, until: int) -> None:
    """Train to the step `until` on so many ranks. Raises EngineError with what they said."""
    command = module_command(CHILD, str(run.path), str(until), str(run.path / f"store-{until}"))
    common = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    common |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    log = run.path / "ranks.log"
    with log.open("w", encoding="utf-8") as output:
        ranks = [
            subprocess.Popen(
                command,
                env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            for rank in range(size)
        ]
        try:
            while any(rank.poll() is None for rank in ranks) and not any(rank.returncode for rank in ranks):
                time.sleep(0.02)
        finally:
            for rank in ranks:
                rank.terminate()  # does nothing to one that has ended
            codes = [rank.wait() for rank in ranks]
    if wrong := next((code for code in codes if code), 0):
        words = log.read_text(encoding="utf-8", errors="replace").strip()[-1500:]
        raise EngineError(f"a run on {size} ranks ended with {wrong}: {words}", "see docs/scale.md")


def _agrees(trial: RankTrial, alone: RankTrial) -> bool:
    return trial.worst(alone) <= MOST_RELATIVE and trial.order == alone.order


def _row(trial: RankTrial, alone: RankTrial, size: int | None) -> tuple[object, ...]:
    order = "the same" if trial.order == alone.order else "DIFFERS"
    name = trial.name if size is None else str(size)
    if size is not None and size > cores().usable:
        name += " (more than cores)"
    speed = (f"{trial.speed:,.0f}", f"{trial.speed / alone.speed:.2f}") if size is not None else ("", "")
    return (name, f"{trial.worst(alone):.1e}", order, *speed)


def _result(
    trials: dict[int, RankTrial], changed: RankTrial, alone: RankTrial, order: Order, is_same: bool, passed: bool
) -> ResultReady:
    """Return the table as JSON."""
    made = {
        "passed": passed,
        "bar": MOST_RELATIVE,
        "evaluations": len(alone.losses),
        "ranks": {
            str(size): {
                "worst": trial.worst(alone),
                "order": trial.order == alone.order,
                "tokens_per_second": trial.speed,
            }
            for size, trial in trials.items()
        },
        "changed": {"worst": changed.worst(alone), "order": changed.order == alone.order},
        "tokens_seen": [order.least, order.most],
        "same_weights": is_same,
    }
    return ResultReady(result=made)


# --- one rank of such a run ---


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
