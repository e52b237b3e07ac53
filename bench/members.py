"""What `settle train --members` gains: from two thirds of a text, beside one model that gets all of it.

    python bench/members.py TEXT... [--bytes 300000] [--members 4] [--seeds 3] [settings of `settle train`]

The last tenth of each text judges; settle gets what is before it. For the members every third stretch of some 8 kB is
left out, another third with each seed. `whole` is one model of all of it, `part` the first member alone, `distilled`
the model of all members; all take the same settings. Every run starts from an empty home.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from nanogpt import bits_per_byte

STRETCH = 8_000  # characters: two thirds of a text are to be like the whole of it
USUAL = ["--size", "600K", "--context", "128", "--batch-tokens", "1024", "--steps", "1200", "--threads", "1"]


def trained(given: str, folder: Path, seed: int, settings: list[str]) -> Path:
    """Return the home in which settle has trained on a text."""
    home, file = folder / "home", folder / "given.txt"
    folder.mkdir()
    file.write_text(given, encoding="utf-8", newline="")
    command = [sys.executable, "-m", "settle", "train", str(file), "--name", "m", "--data.clean=false"]
    done = subprocess.run(
        [*command, "--seed", str(seed), *settings], env={**os.environ, "SETTLE_HOME": str(home)}, stderr=subprocess.PIPE
    )
    if done.returncode not in (0, 3):  # 3: the distilled model is no better
        raise SystemExit(done.stderr.decode())
    return home


def one(text: str, members: int, settings: list[str], seed: int) -> dict[str, object]:
    """Return bits per byte on the last tenth of the text, and how far the distilled model is from the others."""
    given = text[: int(0.9 * len(text))]
    lines = given.splitlines(keepends=True)
    starts = itertools.accumulate(map(len, lines), initial=0)
    part = "".join(line for line, at in zip(lines, starts, strict=False) if at // STRETCH % 3 != seed % 3)
    with tempfile.TemporaryDirectory() as folder:
        withheld = Path(folder, "withheld.txt")
        withheld.write_text(text[len(given) :], encoding="utf-8", newline="")
        whole = trained(given, Path(folder, "whole"), seed, settings)
        few = trained(part, Path(folder, "few"), seed, [*settings, "--members", str(members)])
        homes = {"whole": (whole, "train-m"), "part": (few, "train-m"), "distilled": (few, "ensemble-m-distilled")}
        outs = {side: next((home / "runs").glob(f"*-{name}-*")) / "out" for side, (home, name) in homes.items()}
        return {side: round(bits_per_byte(out, withheld), 4) for side, out in outs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--bytes", type=int, default=300_000)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    asked, settings = parser.parse_known_args()
    for path in asked.texts:
        text = path.read_bytes()[: asked.bytes].decode("utf-8", "ignore")
        for seed in range(asked.seeds):
            found = one(text, asked.members, settings or USUAL, seed)
            print(json.dumps({"text": path.stem, "seed": seed, **found}), flush=True)


if __name__ == "__main__":
    main()
