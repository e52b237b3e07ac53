"""What healing is worth: blocks pruned, pruned and healed, and the same shape from nothing, all on the same tokens.

    python bench/heal.py MODEL TEXT… [--share 0.25] [--steps N | --time 2h] [--scratch text distill] [--out FILE]

MODEL: a folder in Hugging Face's layout or a GGUF. TEXT: what `settle distill` reads. `pruned` is the student before
its first step, `healed` after its last. `scratch-text` is the same shape from first weights, trained on the text alone,
`scratch-distill` the same taught by the model, each for as many steps as the healing took. All are judged on the same
held-out rows: loss, KL from the model, share of tokens with the same likeliest one. Every figure is one JSON line.

Bars: healing wins back 70 % of the loss of quality, and beats both from scratch.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from settle.model.pretrained import Pretrained

RECOVERED = 0.70


def distilled(home: Path, name: str, *given: Any) -> dict[str, Any]:
    """One run of `settle distill` in a home of its own: its result."""
    command = [sys.executable, "-m", "settle", "distill", *map(str, given), "--name", name, "--json"]
    done = subprocess.run(command, env=os.environ | {"SETTLE_HOME": str(home)}, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def steps_of(home: Path, name: str) -> int:
    """How many steps a run took."""
    events = next(home.glob(f"runs/*-{name}-*/events.jsonl")).read_text().splitlines()
    return max(json.loads(line)["step"] for line in events if '"kind": "step"' in line)


def told(what: str, figures: dict[str, Any], teacher: float, pruned: float, seconds: float) -> dict[str, Any]:
    """One line: figures of a student, and the share of the loss of quality that it does not have."""
    won = 1 - (figures["loss"] - teacher) / (pruned - teacher)
    return {"what": what, **figures, "teacher_loss": teacher, "recovered": won, "seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("text", nargs="+")
    parser.add_argument("--share", type=float, default=0.25, help="of the blocks that goes")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--time")
    parser.add_argument("--scratch", nargs="*", default=["text", "distill"], choices=["text", "distill"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--settings", default="", help="more options of settle distill, as one string")
    given = parser.parse_args()
    part: Any = Pretrained.open(given.model).part
    layers = part.num_hidden_layers
    drop = max(1, round(layers * given.share))
    more = given.settings.split()
    budget = ["--steps", given.steps] if given.steps else ["--time", given.time] if given.time else []
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        began = time.monotonic()
        healed = distilled(home, "healed", given.model, *given.text, "--drop-layers", drop, *budget, *more)
        seen, steps = healed["comparison"], steps_of(home, "healed")
        teacher, pruned = seen["teacher"]["loss"], seen["before"]["loss"]
        lines.append(told("pruned", seen["before"], teacher, pruned, 0))
        lines.append(told("healed", seen["after"], teacher, pruned, time.monotonic() - began) | {"steps": steps})
        shape = home / "shape.toml"
        shape.write_text(f"num_hidden_layers = {layers - drop}\n")
        for way in given.scratch:
            began = time.monotonic()
            alone = ["--objective.text", "1"] if way == "text" else []
            fresh = [given.model, *given.text, "--into", shape, "--fresh", "--steps", steps, *alone, *more]
            after = distilled(home, f"scratch-{way}", *fresh)["comparison"]["after"]
            lines.append(told(f"scratch-{way}", after, teacher, pruned, time.monotonic() - began) | {"steps": steps})
    for line in lines:
        print(json.dumps(line))
    best = lines[1]
    beaten = [line for line in lines[2:] if line["loss"] <= best["loss"]]
    passed = best["recovered"] >= RECOVERED and not beaten
    print(f"healing wins back {best['recovered']:.0%} of the loss of quality: {'reached' if passed else 'NOT reached'}")
    if given.out:
        given.out.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
