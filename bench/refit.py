"""What `settle train --refit` gains: both of its models, judged on text that neither has seen.

    python bench/refit.py TEXT... [--seeds 3] [settings of `settle train`]

The first three quarters of a text are given to settle, which withholds its own share of them; the last quarter judges
both exports here. Every seed is another pair of runs, each from an empty home.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from nanogpt import bits_per_byte

GIVEN = 0.75
USUAL = ["--size", "600K", "--context", "128", "--batch-tokens", "1024", "--steps", "300", "--threads", "1"]


def pair(text: str, settings: list[str], seed: int) -> dict[str, float]:
    """Bits per byte of the judged model and of the refit on the last quarter."""
    cut = int(GIVEN * len(text))
    with tempfile.TemporaryDirectory() as folder:
        home, given, withheld = Path(folder, "home"), Path(folder, "given.txt"), Path(folder, "withheld.txt")
        given.write_text(text[:cut], encoding="utf-8", newline="")
        withheld.write_text(text[cut:], encoding="utf-8", newline="")
        command = [sys.executable, "-m", "settle", "train", str(given), "--refit", "--name", "pair"]
        subprocess.run(
            [*command, "--data.clean=false", "--seed", str(seed), *settings],
            env={**os.environ, "SETTLE_HOME": str(home)},
            check=True,
        )
        judged, refit = (next((home / "runs").glob(f"*-{job}-pair*")) / "out" for job in ("train", "refit"))
        return {"judged": bits_per_byte(judged, withheld), "refit": bits_per_byte(refit, withheld)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    asked, settings = parser.parse_known_args()
    for path in asked.texts:
        for seed in range(asked.seeds):
            found = pair(path.read_text(encoding="utf-8"), settings or USUAL, seed)
            print(json.dumps({"text": path.stem, "seed": seed, **found}), flush=True)


if __name__ == "__main__":
    main()
