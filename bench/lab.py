"""Try to fool the lab of `settle runs compare`, and see whether it finds what is there.

    python bench/lab.py record TEXT OUT.jsonl --seeds 201 208     paired runs of a million parameters, one thread
    python bench/lab.py null RECORDED.jsonl                       sessions of 200 changes without an effect
    python bench/lab.py gain RECORDED.jsonl                       a change that gains 1 %, within 6 pairs
    python bench/lab.py changes TEXT OUT.jsonl                    12 real changes, really run, named beforehand

`record` trains a recipe and three others with the same seeds: one that differs in nothing that matters (`EPS`), one
whose first weights are shaken by a hundredth, as the lab's own pairs are by which it knows the noise, and one that
gains something. The rules of settle/experiment/recipes.py were chosen on one text and its seeds (bench/recorded/
lab-chosen.jsonl), and are judged on another with others (lab-judged.jsonl).

`null` draws gains of 0 on average: as recorded, normal, with heavy tails, with a spread of each change's own from half
to three times, and with one pair in twenty ten times as far off. One agent goes by the rule, with 6 pairs; one never
lets a change go for gaining too little, and looks after each of 12 pairs.
"""

import argparse
import json
import math
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from settle.base.event_log import Events
from settle.base.events import Event, ResultReady
from settle.base.settings import recipe_text
from settle.base.statistics import wilson
from settle.experiment.recipes import Noise, error_of, state
from settle.jobs.lab import NOISE_PAIRS, RecipeArm, try_change
from settle.jobs.settings import LabSettings

BASE = {"size": "1M", "steps": 100, "batch_tokens": 512, "threads": 1, "dtype": "bfloat16", "device": "cpu"}
EPS = {"optimizer": {"name": "muon", "eps": 2e-10}}
ARMS = {
    "base": {},
    "eps": EPS,
    "shaken": {},
    "steps": {"steps": 104},
}
NULLS = (("base", "eps"), ("base", "shaken"), ("eps", "shaken"))
LEAST, PAIRS, LONGER, CHANGES, SESSIONS, GAIN = 0.005, 6, 12, 200, 200, 0.01

# what is really tried at a small size, in this order, with what is true of it: gain, loss, or nothing at all
SMALL = {"size": "200k", "steps": 90, "threads": 1, "dtype": "bfloat16", "optimizer": {"name": "muon", "lr": 0.002}}
TRIED = [
    ("optimizer.eps=2e-10", "nothing"), ("optimizer.lr=0.0005", "loss"), ("seed=7", "nothing"),
    ("size=80k", "loss"), ("optimizer.beta2=0.9501", "nothing"), ("optimizer.lr=0.01", "gain"),
    ("micro_tokens=256", "nothing"), ("steps=60", "loss"), ("optimizer.norm_lr=0.00401", "nothing"),
    ("steps=150", "gain"), ("name=renamed", "nothing"), ("steps=100", "loss"),
]  # fmt: skip


RIGHT = {"gain": ("kept",), "loss": ("discarded",), "nothing": ("discarded", "undecided")}


def record(text: Path, out: Path, seeds: range) -> None:
    """Append a line for each arm and seed: the bits per byte of the selection side; those that are there are left."""
    known = {(row["arm"], row["seed"]) for row in _rows(out)} if out.exists() else set()
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            for name, change in ARMS.items():
                if (name, seed) in known:
                    continue
                recipe = {"inputs": [str(text.absolute())], **BASE, **change}
                arm = RecipeArm(name, recipe, Path(folder), is_shaken=name == "shaken")
                found = arm.measure(seed)
                row = {"text": text.stem, "arm": name, "seed": seed, "loss": found.loss, "failed": found.failed}
                with out.open("a") as f:
                    f.write(json.dumps(row) + "\n")
                print(f"{name} {seed}: {found.loss:.5f}, {found.seconds:.0f} s", flush=True)


def gains(rows: Sequence[dict], before: str, after: str) -> list[float]:
    """Gains of all seeds that both arms were run with."""
    losses = {(row["arm"], row["seed"]): row["loss"] for row in rows}
    seeds = sorted({seed for _, seed in losses})
    pairs = [(losses.get((before, seed)), losses.get((after, seed))) for seed in seeds]
    return [math.log(b / a) for b, a in pairs if a and b]


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


Draw = Callable[[random.Random], Callable[[], float]]


def draws(pool: Sequence[float]) -> dict[str, Draw]:
    """Return ways to draw the gains of a change without an effect: for a session's randomness, one change's gains."""
    std = math.sqrt(statistics.fmean(g * g for g in pool))

    def sign(r: random.Random) -> float:
        return r.choice((-1.0, 1.0))

    def student(r: random.Random) -> float:
        return r.gauss(0, 1) / math.sqrt(sum(r.gauss(0, 1) ** 2 for _ in range(3)) / 3) / math.sqrt(3)

    def own(r: random.Random) -> Callable[[], float]:
        scale = math.exp(r.uniform(math.log(0.5), math.log(3)))
        return lambda: scale * sign(r) * r.choice(pool)

    return {
        "as recorded": lambda r: lambda: sign(r) * r.choice(pool),
        "normal": lambda r: lambda: r.gauss(0, std),
        "heavy tails": lambda r: lambda: std * student(r),
        "a spread of each change's own": own,
        "one pair in twenty far off": lambda r: lambda: r.choice(pool) * sign(r) * (10 if r.random() < 0.05 else 1),
    }


def session(draw: Draw, r: random.Random, stubborn: bool, changes: int = CHANGES) -> tuple[int, int]:
    """Return how many changes a session without any effect keeps, and how many pairs it takes."""
    noise, kept, pairs = Noise.of_equals([draw(r)() for _ in range(NOISE_PAIRS)]), 0, NOISE_PAIRS
    for number in range(changes):
        found: list[float] = []
        verdict = _follow(found, draw(r), noise, number, *((LONGER, 1e-9) if stubborn else (PAIRS, LEAST)))
        noise, kept, pairs = noise.with_pairs(found), kept + (verdict == "kept"), pairs + len(found)
    return kept, pairs


def _follow(
    found: list[float], draw: Callable[[], float], noise: Noise, number: int, most: int, least: float
) -> str | None:
    while len(found) < most:
        found.append(draw())
        if verdict := state(found, noise, error_of(number), least):
            return verdict
    return None


def null(recorded: Path, sessions: int, only: str = "") -> None:
    rows = _rows(recorded)
    pool = [gain for pair in NULLS for gain in gains(rows, *pair)]
    print(f"{len(pool)} recorded gains without an effect, root mean square {math.sqrt(np.mean(np.square(pool))):.3%}")
    for name, draw in draws(pool).items():
        if only and name != only:
            continue
        for stubborn in (False, True):
            ends = [session(draw, random.Random(f"{name}-{stubborn}-{n}"), stubborn) for n in range(sessions)]
            keeps, share = [kept > 0 for kept, _ in ends], wilson([kept > 0 for kept, _ in ends])
            pairs = statistics.fmean(pairs for _, pairs in ends) / CHANGES
            agent = f"{LONGER} pairs, never discarded" if stubborn else f"{PAIRS} pairs"
            print(f"{name}, {agent}: {sum(keeps)} of {sessions} sessions ever keep one ({share.value:.1%}, 95 %: "
                  f"{share.low:.1%} to {share.high:.1%}); {pairs:.1f} pairs a change", flush=True)  # fmt: skip
    greedy = [any(draws(pool)["as recorded"](random.Random(n * 1000 + k))() > 0 for k in range(CHANGES))
              for n in range(sessions)]  # fmt: skip
    print(f"whoever keeps what lowers the loss of one run: {sum(greedy)} of {sessions}")


def gain(recorded: Path, sessions: int) -> None:
    rows = _rows(recorded)
    equal = gains(rows, "base", "shaken")
    for arm in ("steps",):
        real = gains(rows, "base", arm)
        mean, std = statistics.fmean(real), _spread(real)
        rest = [(g - mean) * math.sqrt(len(real) / (len(real) - 1)) for g in real]
        print(f"{arm}: {len(real)} pairs gain {mean:.2%}, standard deviation {std:.3%}")
        for number in (0, 100):
            ends = [_found(equal, rest, number, random.Random(f"{arm}-{number}-{n}")) for n in range(sessions)]
            share = wilson([e is not None for e in ends])
            pairs = statistics.fmean(e for e in ends if e is not None) if any(ends) else math.nan
            print(f"  change {number + 1}: found in {share.value:.1%} of {sessions} sessions (95 %: {share.low:.1%} to "
                  f"{share.high:.1%}), after {pairs:.1f} pairs", flush=True)  # fmt: skip


def _found(equal: Sequence[float], rest: Sequence[float], number: int, r: random.Random) -> int | None:
    """Return after how many pairs a change that gains GAIN is kept, None where it is not within PAIRS."""
    noise, found = Noise.of_equals([r.choice(equal) for _ in range(NOISE_PAIRS)]), list[float]()
    for _ in range(number):
        noise = noise.with_pairs([r.choice(equal) for _ in range(3)])
    verdict = _follow(found, lambda: math.log(1 / (1 - GAIN)) + r.choice(rest), noise, number, PAIRS, LEAST)
    return len(found) if verdict == "kept" else None


def changes(text: Path, out: Path) -> None:
    """Try the twelve changes in a lab of their own: a gain is to be kept, a loss discarded, the rest not kept."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SETTLE_HOME"] = folder
        recipe = Path(folder) / "small.toml"
        recipe.write_text(recipe_text({"inputs": [str(text.absolute())], **SMALL}))
        right = 0
        for change, truth in TRIED:
            seen: list[Event] = []
            try_change([str(recipe), change], LabSettings(), Events(listeners=[seen.append]))
            (result,) = (dict(event.result) for event in seen if isinstance(event, ResultReady))
            is_right = result["verdict"] in RIGHT[truth]
            right += is_right
            row = {
                "truth": truth,
                "right": is_right,
                **{k: result[k] for k in ("change", "verdict", "gain", "pairs")},
            }
            print(json.dumps(row), flush=True)
            with out.open("a") as f:
                f.write(json.dumps(row) + "\n")
        print(f"{right} of {len(TRIED)} judged correctly")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    for what in ("record", "changes"):
        sub = commands.add_parser(what)
        sub.add_argument("text", type=Path)
        sub.add_argument("out", type=Path)
        sub.add_argument("--seeds", type=int, nargs=2, default=(201, 208))
    for what in ("null", "gain"):
        sub = commands.add_parser(what)
        sub.add_argument("recorded", type=Path)
        sub.add_argument("--sessions", type=int, default=SESSIONS)
        sub.add_argument("--only", default="", help="of null: this way to draw gains alone")
    asked = parser.parse_args()
    if asked.what == "record":
        record(asked.text, asked.out, range(asked.seeds[0], asked.seeds[1] + 1))
    elif asked.what == "changes":
        changes(asked.text, asked.out)
    elif asked.what == "null":
        null(asked.recorded, asked.sessions, asked.only)
    else:
        gain(asked.recorded, asked.sessions)


if __name__ == "__main__":
    main()
