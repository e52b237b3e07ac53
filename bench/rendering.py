"""Rows through a chat template: rendered ahead in its own process, beside rendered in this one. Paired, as a ratio.

    python bench/rendering.py [--rows 1500] [--rounds 7]

Both sides render and tokenize the same conversations; each round takes them in turns, the order of the two alternates.
1.0 or less: that a template runs in a process of its own costs nothing. Shows the median of the rounds and their range.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from settle.base.chat_template import ChatTemplate  # noqa: E402  the tree that this file is in
from settle.base.chat_template.render_child import Template  # noqa: E402
from settle.data.layouts import Example  # noqa: E402
from settle.data.rows.prepare import RowEncoder  # noqa: E402
from settle.data.settings import RowSettings  # noqa: E402
from tests.data.families import FAMILIES  # noqa: E402

WORDS = ("the", "sea", "wall", "colour", "grey", "old", "tell", "me", "about", "many", "take", "ticket", "printer")


class Here(ChatTemplate):
    """A template that is rendered in this process."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self._template = Template(source)

    def render_cuts(
        self,
        messages: Sequence[Mapping[str, Any]],
        cuts: Sequence[tuple[int, bool]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        arguments: Mapping[str, Any] = {},  # noqa: B006  as in what it replaces
    ) -> list[str]:
        given = {"tools": tools, "documents": None, "bos_token": "", "eos_token": "", **arguments}
        return [
            self._template.render({"messages": list(messages)[:count], "add_generation_prompt": wants, **given}, None)
            for count, wants in cuts
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    family, draw = FAMILIES["qwen3"], random.Random(5)
    examples = [(number, conversation(draw)) for number in range(given.rows)]
    encoders = {
        name: RowEncoder(family.tokenizer, template(family.template), RowSettings(), "chat")
        for name, template in (("process", ChatTemplate), ("here", Here))
    }
    made = {name: [rows for _, _, rows in encoder.rows(examples[:50])] for name, encoder in encoders.items()}
    assert ids(made["process"]) == ids(made["here"])
    ratios = []
    for turn in range(given.rounds):
        took = {}
        for name in sorted(encoders, reverse=bool(turn % 2)):
            began = time.perf_counter()
            for _ in encoders[name].rows(examples):
                pass
            took[name] = time.perf_counter() - began
        ratios.append(took["process"] / took["here"])
        print(f"round {turn + 1}: {ratios[-1]:.2f}", flush=True)
    middle, ends = statistics.median(ratios), f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"{given.rows} rows, {given.rounds} rounds: {middle:.2f} ({ends})")


def conversation(draw: random.Random) -> Example:
    def text(number: int) -> str:
        return " ".join(draw.choices(WORDS, k=number))

    turns = [("user", 12), ("assistant", 40)] * draw.randint(1, 3)
    return Example("chat", [{"role": role, "content": text(number)} for role, number in turns], [])


def ids(made: Sequence[Any]) -> list[list[int]]:
    return [list(row.ids) for rows in made for (row,) in rows]


if __name__ == "__main__":
    main()
