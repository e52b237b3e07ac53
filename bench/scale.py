"""A run on many ranks: the same curve, what killed ranks and full disks leave, memory, speed.

    python bench/scale.py TEXTS all                      # every part below, in turn; Linux, as root
    python bench/scale.py TEXTS curves --steps 120       # 1, 2, 3, 4 ranks, two of them in each network namespace
    python bench/scale.py TEXTS kills --moments 25       # a rank killed at random moments, every third within a save
    python bench/scale.py TEXTS disk                     # a full disk, in the middle of a run
    python bench/scale.py TEXTS partition                # 5 seconds without a network between two namespaces
    python bench/scale.py TEXTS speed                    # two ranks against one with two threads, in turns
    python bench/scale.py TEXTS memory --size 100M       # what a rank of four holds, and what was forecast
    python bench/scale.py TEXTS save --size 10M          # what a save beside the training costs
    python bench/scale.py TEXTS muon --size 10M          # Muon's step over matrices that two ranks share out
    python bench/scale.py TEXTS single --before TREE     # one process, against another checkout, in turns

Every rank is a process of its own, forked from one that has imported torch already, and what it runs is the loop of
`settle train`: the moments fall into the work and not into imports. Lines of JSON go to standard output.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from settle.base.event_log import Events
from settle.base.files import write_json
from settle.base.run import Run
from settle.base.run.course import RunCourse
from settle.base.settings import resolve
from settle.data.prepare import prepare
from settle.machine import PeakMemory, resident
from settle.plan.memory import rank_memory
from settle.plan.settings import TrainingSettings
from settle.plan.training_plan import plan_training
from settle.train import checkpoint as checkpoints
from settle.train.loop import Loop
from settle.train.training_plan import TrainingPlan
from settle.train.world.row_share import FILE

sys.path.insert(0, str(Path(__file__).parent))
from scale_ranks import PATIENCE, Ranks, namespaces  # noqa: E402

BAR = 1e-5  # of a loss from that of one rank


class Bench:
    """What all parts share: the data, a folder, and a plan."""

    def __init__(self, texts: str, folder: Path, steps: int, size: str, batch: int, optimizer: str) -> None:
        self.folder, self.texts, self.steps, self.size, self.batch = folder, texts, steps, size, batch
        self.optimizer = optimizer
        self.number = 0

    def run(self, name: str, is_sharded: bool, **changes: object) -> Run:
        """Return a run that is ready to be trained."""
        asked = {
            "size": self.size,
            "steps": self.steps,
            "batch_tokens": self.batch,
            "dtype": "float32",
            "device": "cpu",
            "sharding": "full" if is_sharded else "none",
            "threads": 1,
            "optimizer": {"name": self.optimizer},
        }
        settings = resolve(TrainingSettings, [("asked", asked)])
        corpus = prepare([self.texts], settings.value.data, Events())
        plan = plan_training(settings.value, settings.origin, corpus, 0.0)
        plan = plan.with_loop(**{"until_settled": False, "checkpoint_steps": 10, "evaluation_cost": 0.5, **changes})
        self.number += 1
        run = Run(self.folder / f"{self.number}-{name}")
        run.checkpoints.mkdir(parents=True)
        write_json(run.path / "plan.json", {**plan.to_json(), "corpus": corpus.fingerprint})
        return run


def losses(run: Run) -> dict[int, float]:
    return {e.step: e.loss for e in RunCourse.read(run.events).evals}


def worst(run: Run, alone: Run) -> float:
    """Return the largest relative difference of an evaluation's loss."""
    mine, theirs = losses(run), losses(alone)
    return (
        max((abs(mine[s] - theirs[s]) / theirs[s] for s in theirs), default=1.0)
        if mine.keys() == theirs.keys()
        else 1.0
    )


def same_order(run: Run, alone: Run) -> bool:
    return (run.path / FILE).read_bytes() == (alone.path / FILE).read_bytes()


def say(**figures: object) -> None:
    print(json.dumps({"at": time.strftime("%H:%M"), "load": round(os.getloadavg()[0], 1), **figures}), flush=True)


def curves(bench: Bench) -> None:
    """Compare curve and order on any number of ranks, over two namespaces, and on a number that changes."""
    alone = bench.run("alone", False)
    Ranks(alone, 1, bench.steps).start().wait()
    with namespaces() as hosts:
        for is_sharded in (True, False):
            for parts in ([2], [3], [4], [2, 1, 3, 2]):
                run, began = bench.run("curve", is_sharded), time.monotonic()
                stops = [bench.steps * (n + 1) // len(parts) for n in range(len(parts))]
                codes = [Ranks(run, size, stop, hosts=hosts if size > 1 else ()).start().wait()
                         for size, stop in zip(parts, stops, strict=True)]  # fmt: skip
                say(part="curves", sharded=is_sharded, ranks=parts, worst=worst(run, alone), bar=BAR, codes=codes,
                    same_order=same_order(run, alone), evaluations=len(losses(run)), steps=bench.steps,
                    seconds=round(time.monotonic() - began))  # fmt: skip


def kills(bench: Bench, moments: int, is_sharded: bool) -> None:
    """Kill a rank of two at a random moment; both are started again, as torchrun does."""
    alone = bench.run("alone", False)
    Ranks(alone, 1, bench.steps).start().wait()
    good, late, lost = 0, [0.0], [0]
    for number in range(moments):
        run, draw = bench.run("killed", is_sharded), random.Random(number)
        how, victim = ("any", "save", "restart")[number % 3], draw.randrange(2)
        ranks = Ranks(run, 2, bench.steps).start()
        if how == "save":
            saved = run.checkpoints / f".{10 * draw.randint(1, 3):08d}.part"
            _until(saved.exists)
        else:
            step = draw.randint(1, bench.steps - 5)
            _until(partial(_has_lines, run, step))
            time.sleep(draw.random() / 5)
        killed = _kill(ranks, victim)
        at, codes = _lines(run), ranks.wait()
        if how == "restart":
            again = Ranks(run, 2, bench.steps).start()
            time.sleep(draw.uniform(0, 3))
            killed = _kill(again, 1 - victim)
            again.wait()
        again = Ranks(run, 2, bench.steps).start()
        _until(partial(_is_back, run, again))
        after, resumed, ended = time.monotonic() - killed, _resumed(run), again.wait()
        is_good = ended == [0, 0] and worst(run, alone) <= BAR and same_order(run, alone)
        good += is_good
        late.append(after)
        lost.append(at - (resumed or 0))
        say(part="kills", number=number, how=how, victim=victim, step=at, resumed_at=resumed, codes=codes, good=is_good,
            worst=worst(run, alone), recovery=round(after, 1))  # fmt: skip
        shutil.rmtree(run.path)
    say(part="kills", sharded=is_sharded, good=good, of=moments, slowest_recovery=round(max(late), 1),
        most_steps_lost=max(lost), checkpoint_steps=10)  # fmt: skip


def _until(is_there: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not is_there() and time.monotonic() - began < PATIENCE:
        time.sleep(0.0005)


def _kill(ranks: Ranks, victim: int) -> float:
    pid = ranks.processes[victim].pid
    assert pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return time.monotonic()


def _lines(run: Run) -> int:
    """Return the number of steps in the order ledger."""
    return (run.path / FILE).read_bytes().count(b"\n") if (run.path / FILE).exists() else 0


def _has_lines(run: Run, number: int) -> bool:
    return _lines(run) >= number


def _is_back(run: Run, ranks: Ranks) -> bool:
    return _resumed(run) is not None or not any(process.is_alive() for process in ranks.processes)


def _resumed(run: Run) -> int | None:
    """Return the step from which the run resumed last."""
    found = [e["step"] for e in _events(run) if e["kind"] == "resumed"]
    return int(str(found[-1])) if found else None


def _events(run: Run) -> list[dict[str, object]]:
    if not run.events.exists():
        return []
    return [json.loads(line) for line in run.events.read_bytes().split(b"\n")[:-1]]


def disk(bench: Bench, is_sharded: bool) -> None:
    """Fill the disk of the checkpoints in the middle of a run, and make room again."""
    place = bench.folder / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "settle", str(place)], check=True)
    try:
        alone, run = bench.run("alone", False), bench.run("full", is_sharded)
        run.checkpoints.rmdir()
        run.checkpoints.symlink_to(place, target_is_directory=True)
        Ranks(alone, 1, bench.steps).start().wait()
        ranks = Ranks(run, 2, bench.steps).start()
        _until(partial(_has_lines, run, 5))
        with contextlib.suppress(OSError), (place / "ballast").open("wb", buffering=0) as f:
            while True:
                f.write(bytes(1 << 12))
        _until(lambda: _is_full(run) or not any(p.is_alive() for p in ranks.processes))
        time.sleep(3)
        (place / "ballast").unlink()
        codes = ranks.wait()
        say(part="disk", sharded=is_sharded, waited=_is_full(run), codes=codes, worst=worst(run, alone),
            same_order=same_order(run, alone))  # fmt: skip
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def _is_full(run: Run) -> bool:
    return any("disk is full" in str(event.get("text")) for event in _events(run))


def partition(bench: Bench, is_sharded: bool) -> None:
    """Five seconds in which nothing goes from one namespace to the other."""
    quiet, run = bench.run("quiet", is_sharded), bench.run("parted", is_sharded)
    with namespaces() as hosts:
        Ranks(quiet, 2, bench.steps, hosts=hosts).start().wait()
        ranks = Ranks(run, 2, bench.steps, hosts=hosts).start()
        _until(partial(_has_lines, run, 5))
        before = len(_events(run))
        for state in ("down", "up"):
            subprocess.run(f"ip -n {hosts[0]} link set v-{hosts[0]} {state}".split(), check=True)
            time.sleep(5 if state == "down" else 0)
        during = len(_events(run)) - before
        codes = ranks.wait()
    newest = [checkpoints.steps(r.checkpoints)[-1] for r in (quiet, run)]
    files = [b"".join(f.read_bytes() for f in sorted(path.glob("*.safetensors"))) for path in newest]
    say(part="partition", sharded=is_sharded, codes=codes, same_weights=files[0] == files[1], events_during=during)


def speed(bench: Bench, pairs: int) -> None:
    """Tokens per second of two ranks with a thread each against one with two, in turns."""
    ratios: dict[bool, list[float]] = {True: [], False: []}
    for number in range(pairs):
        pace: dict[tuple[int, bool], float] = {}
        cases = [(1, False), (2, False), (2, True)]
        for size, is_sharded in cases if number % 2 else cases[::-1]:
            run = bench.run("speed", is_sharded, threads=2 // size, checkpoint_steps=10**6, evaluation_cost=0.01)
            Ranks(run, size, bench.steps, threads=2 // size).start().wait()
            took = sorted(step.tokens_per_second for step in RunCourse.read(run.events).steps[5:])
            pace[size, is_sharded] = statistics.median(took)
        for is_sharded in ratios:
            ratios[is_sharded].append(pace[2, is_sharded] / pace[1, False])
        say(part="speed", pair=number, tokens_per_second={f"{s} {f}": round(v) for (s, f), v in pace.items()})
    for is_sharded, found in ratios.items():
        say(part="speed", sharded=is_sharded, ratio=statistics.median(found), all=[round(r, 3) for r in found])


def memory(bench: Bench, ranks: int = 4) -> None:
    """Measure what each of four ranks holds, against one rank and against the forecast.

    What processes of a tiny model hold is subtracted: code and buffers that any run has.
    """
    sizes, held, size = (1, ranks), dict[tuple[str, int], list[dict[str, float]]](), bench.size
    for bench.size in ("60k", size):
        for number in sizes:
            run = bench.run("memory", number > 1, checkpoint_steps=2, evaluation_cost=0.01, warmup_steps=1)
            forecast = rank_memory(TrainingPlan.from_json(run.read("plan.json") or {}), number).device
            codes = Ranks(run, number, 5, hear=_note_memory).start().wait()
            notes = [json.loads((run.path / f"memory-{rank}.json").read_text()) for rank in range(number)]
            held[bench.size, number] = notes
            say(part="memory", size=bench.size, ranks=number, codes=codes, held=notes, forecast=forecast)
            shutil.rmtree(run.path)
    of_states = max(h["states"] for h in held[size, ranks]) / held[size, 1][0]["states"]
    beyond = {n: max(h["peak"] for h in held[size, n]) - max(h["peak"] for h in held["60k", n]) for n in sizes}
    peak = beyond[ranks] / held[size, 1][0]["states"]
    say(part="memory", states=of_states, peak=peak, peaks=beyond[ranks] / beyond[1],
        bytes=beyond, forecast_error=forecast / beyond[ranks] - 1)  # fmt: skip


def _note_memory(loop: Loop, rank: int) -> None:
    """Note the states, and the most that the process holds in steps and saves beyond what it held before the model."""
    trainer, take, peaks = loop.trainer, loop.trainer.take_step, [PeakMemory()]
    steps = [0]

    def noted(*arguments: object) -> object:
        steps[0] += 1
        if steps[0] == 2:
            peaks.append(PeakMemory())
        result = take(*arguments)
        own = trainer.own_weights()
        states = 2 * sum(w.nbytes for w in own.values()) + sum(t.nbytes for t in trainer.stepper.state().values())
        figures = {"states": states, "peak": peaks[-1].read() - loop.before, "after": resident() - loop.before}
        (loop.session.run.path / f"memory-{rank}.json").write_text(json.dumps(figures))
        return result

    trainer.take_step = noted


def save(bench: Bench) -> None:
    """Measure what a save costs the training: seconds of standstill, and longer steps."""
    run = bench.run("save", True, checkpoint_steps=20, evaluation_cost=0.01)
    Ranks(run, 2, bench.steps, hear=_note_saves).start().wait()
    notes = [json.loads(line) for line in (run.path / "saves.jsonl").read_text().splitlines()]
    plain = statistics.median(n["step"] for n in notes if not n["writing"] and not n["saved"])
    beside = [n["step"] for n in notes if n["writing"]]
    stands = statistics.median(n["saved"] for n in notes if n["saved"])
    longer = sum(max(0.0, step - plain) for step in beside) / max(1, sum(1 for n in notes if n["saved"]))
    newest = checkpoints.steps(run.checkpoints)[-1]
    say(part="save", step=plain, stands_still=stands, longer_beside=longer, share_of_a_minute=(stands + longer) / 60,
        steps_beside=len(beside), megabytes=sum(f.stat().st_size for f in newest.iterdir()) / 1e6)  # fmt: skip


def _note_saves(loop: Loop, rank: int) -> None:
    store, take, keep = loop.recovery.store, loop.trainer.take_step, loop.recovery.store.save
    took = {"step": 0.0, "saved": 0.0, "writing": False}

    def note() -> None:
        if rank == 0:
            with (loop.session.run.path / "saves.jsonl").open("a") as f:
                f.write(json.dumps(took) + "\n")

    def step(*arguments: object) -> object:
        if took["step"]:
            note()
        writing = store._writing is not None and store._writing._thread.is_alive()
        began = time.perf_counter()
        result = take(*arguments)
        took.update(step=time.perf_counter() - began, saved=0.0, writing=writing)
        return result

    def saved(*arguments: object) -> bool:
        began = time.perf_counter()
        is_kept: bool = keep(*arguments)
        took["saved"] = time.perf_counter() - began
        return is_kept

    loop.trainer.take_step, store.save = step, saved


def muon(bench: Bench) -> None:
    """Seconds of Muon's step: one rank; two that each take half of the matrices whole; torch.optim.Muon on the same."""
    for size in (1, 2):
        run = bench.run("muon", True, checkpoint_steps=10**6, evaluation_cost=0.01)
        codes = Ranks(run, size, 3, hear=_note_updates).start().wait()
        found = json.loads((run.path / "updates.json").read_text())
        say(part="muon", ranks=size, codes=codes, **{name: statistics.median(took) for name, took in found.items()})


def _note_updates(loop: Loop, rank: int) -> None:
    """Time steps on the gradient of one batch: ours, then torch's, in turns."""
    trainer, path = loop.trainer, loop.session.run.path / "updates.json"
    rates = trainer.stepper.rates
    take = trainer.take_step

    def noted(*arguments: object) -> object:
        result = take(*arguments)
        matrices = [p for _, p in itertools.chain.from_iterable(trainer.stepper.groups.values())]
        theirs = torch.optim.Muon(matrices, lr=rates.lr, momentum=rates.momentum, ns_steps=rates.ns_steps)
        took: dict[str, list[float]] = {"ours": [], "torch": []}
        for _ in range(4):
            for name, step in (("ours", lambda: trainer.stepper.step(0.0)), ("torch", theirs.step)):
                trainer.world.agree(0.0)
                began = time.perf_counter()
                step()
                took[name].append(time.perf_counter() - began)
        if rank == 0:
            path.write_text(json.dumps(took))
        return result

    trainer.take_step = noted


SINGLE = """
import json, statistics, sys, time
from pathlib import Path
from settle.base.run import Run
from settle.base.run.course import RunCourse
from settle.jobs.ranks.prove_scale import train
run = Run(Path(sys.argv[1]))
import settle
assert settle.__file__.startswith(sys.argv[3])
from settle.train.trainer import Trainer
take, took = Trainer.take_step, []
def timed(*arguments):
    began = time.process_time()
    result = take(*arguments)
    took.append(time.process_time() - began)
    return result
Trainer.take_step = timed
train(run, int(sys.argv[2]), "")
print(statistics.median(took[10:]))
print(statistics.median(1 / step.tokens_per_second for step in RunCourse.read(run.events).steps[10:]))
"""


def single(bench: Bench, before: str, pairs: int) -> None:
    """One process of this tree against one of another, in turns; and whether they leave the same bytes."""
    ratios: dict[str, list[float]] = {"processor": [], "clock": []}
    trees = [before, str(Path(__file__).parent.parent)]
    for number in range(pairs):
        pace, weights = {}, {}
        for tree in trees if number % 2 else trees[::-1]:
            run = bench.run("single", False, checkpoint_steps=bench.steps, evaluation_cost=0.01)
            record = run.read("plan.json") or {}
            loop = record["loop"]
            assert isinstance(loop, dict)
            for name in ("is_sharded", "is_hybrid", "offloads"):
                loop.pop(name)  # older trees do not know it
            write_json(run.path / "plan.json", record)
            environment = {**os.environ, "PYTHONPATH": tree, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-P", "-c", SINGLE, str(run.path), str(bench.steps), tree]
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            pace[tree] = [float(line) for line in done.stdout.split()]
            weights[tree] = (checkpoints.steps(run.checkpoints)[-1] / "model.safetensors").read_bytes()
            shutil.rmtree(run.path)
        for kind, earlier, later in zip(ratios, pace[trees[0]], pace[trees[1]], strict=True):
            ratios[kind].append(later / earlier)
        say(
            part="single",
            pair=number,
            ratio=[r[-1] for r in ratios.values()],
            same_weights=len({*weights.values()}) == 1,
        )
    for kind, found in ratios.items():
        spread = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else math.inf
        say(
            part="single",
            time=kind,
            after_to_before=statistics.median(found),
            mean=statistics.fmean(found),
            stderr=spread,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts")
    parser.add_argument("part", choices=("all", *PARTS))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--size", default="60k")
    parser.add_argument("--batch-tokens", type=int, default=256)
    parser.add_argument("--optimizer", default="muon")
    parser.add_argument("--moments", type=int, default=25)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--sharding", choices=("none", "full"), default="full")
    parser.add_argument("--before", help="another checkout, for `single`")
    asked = parser.parse_args()
    is_sharded = asked.sharding == "full"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="settle-scale-") as folder:
        bench = Bench(asked.texts, Path(folder), asked.steps, asked.size, asked.batch_tokens, asked.optimizer)
        for part in PARTS if asked.part == "all" else [asked.part]:
            if part == "single":
                if asked.before:
                    single(bench, asked.before, asked.pairs)
            elif part == "kills":
                kills(bench, asked.moments, is_sharded)
            elif part == "speed":
                speed(bench, asked.pairs)
            elif part in ("disk", "partition"):
                {"disk": disk, "partition": partition}[part](bench, is_sharded)
            else:
                {"curves": curves, "memory": memory, "save": save, "muon": muon}[part](bench)


PARTS = ("curves", "kills", "disk", "partition", "speed", "memory", "save", "muon", "single")

if __name__ == "__main__":
    main()
