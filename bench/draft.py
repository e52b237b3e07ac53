"""What a draft is worth in llama.cpp: the same greedy answers, sooner.

    python bench/draft.py MODEL ROWS… [--drop-layers 26] [--steps N | --time 2h] [--draft-type q4_0]
    python bench/draft.py MODEL.gguf ROWS… --pair DRAFT.gguf
    python bench/draft.py MODEL.gguf ROWS… --pair RUN --as-asked

MODEL: a folder in Hugging Face's layout (served as F16) or a GGUF. ROWS: a person's own prompts, as `settle tune` reads
them; a part is held out, and only that is asked. The first form makes the draft with `settle distill --draft` and tells
what that run measured; the second measures a pair that is there. One JSON line. `--as-asked`: as people ask, greedily,
drawn at temperature 0.8, and held to JSON; alone and with the draft in turns, twice.

Bar: 1.5 times as many tokens per second, every greedy answer identical.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from settle.base.event_log import Events
from settle.data.rows.prepare import prepare_rows
from settle.data.settings import RowSettings
from settle.evaluate.speculative import measure_pair
from settle.infer.engine import Engine, draft_for
from settle.jobs.distill import draft_prompts
from settle.library.resolve import resolve_gguf
from settle.model.pretrained import Pretrained

SPEED_UP = 1.5
JSON = r"""root ::= object
value ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" (string ": " value (", " string ": " value)*)? "}"
array ::= "[" (value (", " value)*)? "]"
string ::= "\"" [^"\\]* "\""
number ::= "-"? [0-9]+ ("." [0-9]+)?
"""


def made(given: argparse.Namespace) -> dict[str, Any]:
    """Make the draft in a run, and return the pair's figures."""
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


def prompts_of(model: Pretrained, given: argparse.Namespace) -> list[list[int]]:
    """Those that `settle distill --draft` measures a pair on."""
    corpus = prepare_rows(given.rows, model.tokenizer, RowSettings(), Events())
    live = SimpleNamespace(tokenizer=model.tokenizer, architecture=model.part)
    return draft_prompts(corpus, live, given.prompts)


def there(given: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a pair of files."""
    model = Pretrained.open(given.model)
    prompts = prompts_of(model, given)
    said = Events(listeners=[lambda event: print(getattr(event, "text", ""), file=sys.stderr)])
    return measure_pair(Path(given.model), Path(given.pair), prompts, given.answer_tokens, said).to_json()


def answered(engine: Engine, prompt: list[int], most: int, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return an answer, and llama.cpp's timings of it."""
    pieces, text = engine.complete(prompt, most, **settings), ""
    while True:
        try:
            text += next(pieces)
        except StopIteration as end:
            return text, end.value["timings"]


def as_asked(given: argparse.Namespace) -> None:
    """Print how many times as fast each way of asking is, and how many answers are the same."""
    model = Path(given.model)
    draft = draft_for(resolve_gguf(model), given.pair, Events())
    opened = Pretrained.open(model)
    prompts = prompts_of(opened, given)
    ways: dict[str, dict[str, Any]] = {
        "greedily": {"temperature": 0.0},
        "drawn at 0.8": {"temperature": 0.8, "seed": 1},
        "held to JSON": {"temperature": 0.0, "grammar": JSON},
    }
    rates: dict[str, list[list[float]]] = {way: [[], []] for way in ways}
    texts: dict[str, list[list[str]]] = {way: [[], []] for way in ways}
    for with_draft in (False, True, False, True):
        with Engine(model, draft=draft if with_draft else None) as engine:
            engine.timed(prompts[0], 8)
            for way, settings in ways.items():
                told = [answered(engine, prompt, given.answer_tokens, settings) for prompt in prompts]
                seconds = sum(timings["predicted_ms"] for _, timings in told) / 1e3
                rates[way][with_draft].append(sum(timings["predicted_n"] - 1 for _, timings in told) / seconds)
                texts[way][with_draft] = [text for text, _ in told]
    for way, (alone, together) in rates.items():
        same = sum(a == b for a, b in zip(*texts[way], strict=True))
        print(f"{way}: {sum(together) / sum(alone):.2f} times as fast, {same} of {len(prompts)} answers the same")


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
    parser.add_argument("--as-asked", action="store_true", help="with --pair: three ways of asking")
    given = parser.parse_args()
    if given.as_asked:
        as_asked(given)
        return
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
