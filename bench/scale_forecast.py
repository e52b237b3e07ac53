"""The time that a run on many ranks takes, against its forecast and that of one process.

    python bench/scale_forecast.py TEXTS --ranks 2 [--runs 8] [--seed 0]

Each run has a size, a number of steps, a batch, a context and a sharding that are drawn, and is started by torchrun as
a person would. A line of JSON a run goes to standard output: seconds forecast with their 80 % interval, and taken.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile

from settle.base.run import Run

SECONDS = 45  # that a run's loop is to take, about


def drawn(number: int, seed: int) -> list[str]:
    """Return a recipe that nobody chose."""
    random.seed(f"{seed}/{number}")
    size = round(10 ** random.uniform(4.7, 6.4))
    batch = random.choice([512, 1024, 2048, 4096])
    context = random.choice([64, 128, 256])
    steps = max(20, round(SECONDS * 2.5e10 / (6 * size * batch)))
    sharding = random.choice(["none", "none", "full"])
    asked = {"size": size, "steps": min(1500, steps), "batch-tokens": batch, "context": context, "sharding": sharding}
    return [word for name, value in asked.items() for word in (f"--{name}", str(value))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    errors, inside = [], []
    with tempfile.TemporaryDirectory(prefix="settle-scale-") as home:
        os.environ["SETTLE_HOME"] = home
        for number in range(asked.runs):
            recipe = drawn(number, asked.seed)
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
            command = [*launcher, str(asked.ranks), "-m", "settle", "train", asked.texts, "--name", f"r{number}"]
            done = subprocess.run([*command, *recipe], capture_output=True, text=True, check=True)
            result = Run.find(f"r{number}").read("result.json") or {}
            time, actual = result["forecast"]["time"], result["actual"]["time"]
            said = re.search(r"a step of .*", done.stderr)
            errors.append(abs(actual / time["value"] - 1))
            inside.append(time["low"] <= actual <= time["high"])
            line = {"recipe": " ".join(recipe), "forecast": time, "seconds": actual, "said": said and said.group()}
            print(json.dumps(line | {"error": errors[-1], "inside": inside[-1]}), flush=True)
    print(json.dumps({"median_error": statistics.median(errors), "inside": statistics.fmean(inside)}))


if __name__ == "__main__":
    main()
