"""How much faster `settle generate` answers a file than one prompt at a time, in turns on the same machine.

python bench/generate.py MODEL [--rounds 5]. Both sides ask the same llama.cpp the same prompts, the likeliest tokens;
one side is a plain loop over `Engine.answer` with a single slot.
"""

import argparse
import statistics
import time

from settle.base.event_log import Events
from settle.infer.engine import Engine
from settle.infer.table import TableRow
from settle.jobs.generate import Drawing, complete, row_prompt
from settle.library.resolve import resolve_gguf

TOKENS = 64
TOPICS = (
    ("bread", "tides", "clocks", "maps", "rain", "rope", "glass", "salt", "paper", "steel")
    + ("tea", "wool", "ink", "bees", "rust", "sand", "moss", "kites", "yeast", "cork")
)  # fmt: skip
ASKED = ("What is {} used for?", "Write two sentences about {}.")


def one_at_a_time(model: str, prompts: list[str]) -> list[str]:
    with Engine(resolve_gguf(model).weights, 4096) as engine:
        cases = [row_prompt(TableRow({"prompt": prompt}), 1).case for prompt in prompts]
        return [engine.answer(engine.turns(case.messages), TOKENS).text.strip() for case in cases]


def batch(model: str, prompts: list[str], seed: int) -> list[str]:
    return [texts[0] for texts in complete(model, prompts, Drawing(max_tokens=TOKENS, seed=seed), Events())]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    prompts = [frame.format(topic) for frame in ASKED for topic in TOPICS]
    ratios = []
    for number in range(arguments.rounds):
        seconds: dict[str, float] = {}
        answers: dict[str, list[str]] = {}
        for side in ("batch", "alone") if number % 2 else ("alone", "batch"):
            began = time.monotonic()
            if side == "alone":
                answers[side] = one_at_a_time(arguments.model, prompts)
            else:  # another seed each round, which changes nothing but that no answer is known yet
                answers[side] = batch(arguments.model, prompts, 1_000_000 + number)
            seconds[side] = time.monotonic() - began
        same = sum(a == b for a, b in zip(answers["batch"], answers["alone"], strict=True))
        ratios.append(seconds["alone"] / seconds["batch"])
        print(f"round {number + 1}: {ratios[-1]:.2f} times as fast; {same} of {len(prompts)} answers are equal")
    print(f"median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
