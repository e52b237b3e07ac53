"""What a draft is worth in llama.cpp: the same greedy answers, sooner.

    python bench/draft.py MODEL ROWS… [--drop-layers 26] [--steps N | --time 2h] [--draft-type q4_0]
    python bench/draft.py MODEL.gguf ROWS… --pair DRAFT.gguf

MODEL: a folder in Hugging Face's layout (served as F16) or a GGUF. ROWS: a person's own prompts, as `settle tune` reads
them; a part is held out, and only that is asked. The first form makes the draft with `settle distill --draft` and tells
what that run measured; the second measures a pair that is there. One JSON line.

Bar: 1.5 times as many tokens per second, every greedy answer identical.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from settle.base.events import Events
from settle.commands.distill import prompts_of
from settle.data.rows.prepare import prepare_rows
from settle.data.settings import RowSettings
from settle.evaluate.speculative import measure_pair
from settle.model.pretrained import Pretrained

SPEED_UP = 1.5


def made(given: argparse.Namespace) -> dict[str, Any]:
    """The pair's figures of a run that makes the draft."""
    command = [sys.executable, "-m", "settle", "distill", given.model, *given.rows, "--draft", "--json", "--name", "d"]
    command += ["--draft-type", given.draft_type, "--answer-tokens", str(given.answer_tokens)]
    command += ["--compare-rows", str(given.prompts), *given.settings.split()]
    for name in ("drop_layers", "steps", "time"):
        if getattr(given, name):
            command += [f"--{name.replace('_', '-')}", str(getattr(given, name))]
    with tempfile.TemporaryDirectory() as folder:
        home = str(given.home or folder)
        done = subprocess.run(command, env=os.environ | {"SETTLE_HOME": home}, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    result = json.loads(done.stdout.splitlines()[-1])
    kept = {"after": result["comparison"]["after"], "before": result["comparison"]["before"]}
    return {**result["pair"], **kept, "tokens_learned": result["actual"]["tokens"], "seconds": result["actual"]["time"]}


def there(given: argparse.Namespace) -> dict[str, Any]:
    """The figures of a pair of files."""
    model = Pretrained.open(given.model)
    corpus = prepare_rows(given.rows, model.tokenizer, RowSettings(), Events())
    prompts = prompts_of(corpus, model.tokenizer, model.part, given.prompts)
    said = Events(listeners=[lambda event: print(event.get("text", ""), file=sys.stderr)])
    return measure_pair(Path(given.model), Path(given.pair), prompts, given.answer_tokens, said).to_json()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--pair", help="a draft that is there")
    parser.add_argument("--drop-layers", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--time")
    parser.add_argument("--draft-type", default="q8_0")
    parser.add_argument("--answer-tokens", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=40, help="held-out prompts that are asked at most")
    parser.add_argument("--home", type=Path, help="SETTLE_HOME of the run, kept; a temporary one if not given")
    parser.add_argument("--settings", default="", help="more options of settle distill, as one string")
    given = parser.parse_args()
    figures = there(given) if given.pair else made(given)
    print(json.dumps(figures))
    same = figures["identical"] == figures["prompts"]
    passed = figures["speed_up"] >= SPEED_UP and same
    print(
        f"{figures['speed_up']:.2f} times as fast, {figures['identical']} of {figures['prompts']} answers identical: "
        f"{'reached' if passed else 'NOT reached'}"
    )


if __name__ == "__main__":
    main()
