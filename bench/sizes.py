"""Is the size that a time budget chooses the best one? The chosen size against others, in the same time on one text.

    python bench/sizes.py TEXT [--time 60s] [--factors 0.25 0.5 1 2 4]

Each run is `settle train TEXT --time T`, the first with the size that settle chooses, the others with a multiple of it.
Prints a Markdown table: parameters, tokens seen, held-out bits per byte.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile


def run(text: str, time: str, home: str, size: int | None) -> dict:
    """result.json and the plan of one run."""
    asked = ["--size", str(size)] if size else []
    command = [sys.executable, "-m", "settle", "train", text, "--time", time, "--name", f"s{size or 0}", "--json"]
    done = subprocess.run(
        [*command, *asked], env={**os.environ, "SETTLE_HOME": home}, capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    shown = subprocess.run(
        [sys.executable, "-m", "settle", "runs", "show", f"s{size or 0}", "--json"],
        env={**os.environ, "SETTLE_HOME": home},
        capture_output=True,
        text=True,
        check=True,
    )
    result["path"] = json.loads(shown.stdout.splitlines()[-1])["run"]["path"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text")
    parser.add_argument("--time", default="60s")
    parser.add_argument("--factors", type=float, nargs="+", default=[0.25, 0.5, 2, 4])
    asked = parser.parse_args()
    print("| size | tokens seen | bits per byte |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as home:
        chosen = run(asked.text, asked.time, home, None)
        with open(f"{chosen['path']}/out/hf/model.safetensors", "rb") as f:
            header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        shapes = [t["shape"] for name, t in header.items() if name != "__metadata__"]
        parameters = sum(s[0] * (s[1] if len(s) > 1 else 1) for s in shapes)
        for factor, result in [(1.0, chosen), *((f, None) for f in asked.factors)]:
            came = result or run(asked.text, asked.time, home, int(parameters * factor))
            name = f"{parameters * factor:,.0f}" + (" (chosen)" if result else "")
            best = came["best"]
            print(f"| {name} | {best['tokens']:,} | {best['bits_per_byte']:.4f} |", flush=True)


if __name__ == "__main__":
    main()
