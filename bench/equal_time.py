"""What the recipe is worth: bits per byte before and now, from the same text in the same time.

    python bench/equal_time.py TEXT... [--before 7233fd96] [--times 1m 3m 10m] [--seeds 3] [settings of `settle train`]
    python bench/equal_time.py TEXT... --size 1m --with "--architecture qwen3"   the same recipe with and without that
    python bench/equal_time.py TEXT... --alone --times 1m 3m 10m 30m             what more time brings

The first 90 % of each text's characters are given to settle, which withholds its own share of them; the last 10 % judge
both exports here. Both sides of a pair run at the same time with one thread each, so that whatever else the machine
does hits both; every run starts from an empty home. `passes` are those over the text that trains.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from busy import HERE, tree_of
from nanogpt import bits_per_byte, halves


def begun(tree: Path, given: Path, home: Path, seed: int, settings: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "settle", "train", str(given), "--seed", str(seed)]
    return subprocess.Popen(
        [*command, "--threads", "1", "--data.clean=false", "--name", "pair", "--json", *settings],
        env={**os.environ, "SETTLE_HOME": str(home), "PYTHONPATH": str(tree)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def figures(home: Path, withheld: Path) -> dict[str, object]:
    """Return what a run reached, and how."""
    from settle.model.architectures import Architecture

    (run,) = (home / "runs").iterdir()
    (ledger,) = (home / "tokens").glob("*/ledger.json")
    result, plan = (json.loads((run / name).read_text()) for name in ("result.json", "plan.json"))
    tokens, unique = result["actual"]["tokens"], json.loads(ledger.read_text())["train"]["tokens"]
    return {
        "bits_per_byte": round(bits_per_byte(run / "out", withheld), 4),
        "verdict": result["verdict"],
        "parameters": Architecture.make(plan["architecture_name"], plan["architecture"]).num_parameters,
        "passes": round(tokens / unique, 1),
        "minutes": round(result["actual"]["time"] / 60, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--before", default="7233fd96", help="commit to compare with")
    parser.add_argument("--times", nargs="+", default=["1m", "3m", "10m"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="where the homes of all runs stay")
    parser.add_argument("--with", dest="change", help="settings of the second side, where both are of now")
    parser.add_argument("--alone", action="store_true", help="only the side of now")
    asked, settings = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        sides = {"now": (HERE, [*settings, *shlex.split(asked.change or "")])}
        if not asked.alone:
            first = HERE if asked.change else tree_of(asked.before, Path(folder, "tree"))
            sides["before"] = (first, settings)
        for text in asked.texts:
            given, withheld = Path(folder, "given.txt"), Path(folder, "withheld.txt")
            for path, content in zip((given, withheld), halves(text), strict=True):
                path.write_text(content, encoding="utf-8", newline="")
            for time in asked.times:
                for seed in range(asked.seeds):
                    homes = {side: Path(asked.keep or folder, f"{text.stem}-{time}-{seed}-{side}") for side in sides}
                    budget = ["--time", time]
                    pair = [begun(tree, given, homes[side], seed, budget + s) for side, (tree, s) in sides.items()]
                    codes = [process.wait() for process in pair]
                    if any(codes):
                        raise SystemExit(f"a run of {text} failed")
                    found = {side: figures(homes[side], withheld) for side in sides}
                    print(
                        json.dumps({"text": text.stem, "time": time, "seed": seed, "with": asked.change, **found}),
                        flush=True,
                    )


if __name__ == "__main__":
    main()
