"""What `settle tune` says of time, memory and loss before it begins, against what came: runs of every kind.

    python bench/tune_forecasts.py SMOLLM2.gguf GEMMA.gguf GSM8K.jsonl ALPACA.json DPO.json TOOLS.json DOCSTRINGS.jsonl

Prints a table in Markdown. Each run is a process of its own and ends after its steps; the data is read whole, so rows
are as long as they come.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from settle.base.run import Run
from settle.plan.ledger import entries

# base, rows, what is asked for
RUNS = [
    ("smollm2", "gsm8k", "--steps 40"),
    ("smollm2", "alpaca", "--steps 60 --batch-rows 4 --adapter.rank 8"),
    ("smollm2", "docstrings", "--steps 16 --quantize as-is"),
    ("smollm2", "docstrings", "--steps 16 --quantize nf4 --batch-rows 4"),
    ("smollm2", "dpo", "--steps 16 --batch-rows 4"),
    ("smollm2", "alpaca", "--steps 25 --adapter full"),
    ("smollm2", "tools", "--steps 20 --adapter dora --adapter.targets q_proj,v_proj --batch-rows 4"),
    ("smollm2", "gsm8k", "--steps 12 --dtype float32 --recompute"),
    ("gemma", "alpaca", "--steps 20"),
    ("gemma", "gsm8k", "--steps 12 --quantize as-is"),
    ("gemma", "dpo", "--steps 8 --batch-rows 4"),
    ("smollm2", "gsm8k", "--steps 30 --threads 1 --batch-rows 16 --adapter.targets gate_proj,up_proj"),
]
SAID = ("time", "peak_memory", "loss")


def main() -> None:
    parser = argparse.ArgumentParser()
    names = ("smollm2", "gemma", "gsm8k", "alpaca", "dpo", "tools", "docstrings")
    for name in names:
        parser.add_argument(name, type=Path)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of runs, from 0")
    asked = parser.parse_args()
    print("| run | time | peak memory | loss |\n|---|--:|--:|--:|")
    errors: dict[str, list[tuple[float, bool]]] = {name: [] for name in SAID}
    with tempfile.TemporaryDirectory() as home:
        os.environ["SETTLE_HOME"] = home
        for number in asked.only or range(len(RUNS)):
            base, rows, settings = RUNS[number]
            files = [str(getattr(asked, name).absolute()) for name in (base, rows)]
            command = [sys.executable, "-m", "settle", "tune", *files, "--name", f"r{number}", "--no-compare"]
            done = subprocess.run([*command, *settings.split()], capture_output=True, text=True)
            if done.returncode:
                print(json.dumps({"run": number, "said": done.stderr[-2000:]}), file=sys.stderr)
                continue
            told = {entry.figure: entry for entry in entries([Run.find(f"r{number}")])}
            cells = []
            for name in SAID:
                entry = told[name]
                errors[name].append((abs(entry.error), entry.inside))
                scale = 1e6 if name == "peak_memory" else 1
                inside = "" if entry.inside else ", outside"
                cells.append(
                    f"{entry.forecast.value / scale:.4g} → {entry.actual / scale:.4g} ({entry.error:+.1%}{inside})"
                )
            print(f"| {base}, {rows}: {settings} | {' | '.join(cells)} |", flush=True)
    print()
    for name, found in errors.items():
        off = [error for error, _ in found]
        inside = sum(held for _, held in found)
        print(f"{name}: median {statistics.median(off):.1%}, largest {max(off):.1%}, {inside} of {len(found)} inside")


if __name__ == "__main__":
    main()
