"""What can be started with some data on this machine: the models that can learn them, and what a time gives each.

    python -m settle.plan.report.start_choices CHARACTERS BYTES ROWS

prints it as JSON. ROWS is 0 for text, which a new small model can learn as well. Reading it loads torch.
"""

import json
import sys
from collections.abc import Sequence
from typing import TypedDict

from settle.base.amounts import seconds
from settle.base.files import JsonObject
from settle.base.words.amounts import amount, count, duration
from settle.machine.described_machine import machine_or_this
from settle.plan.report import PlanSettings
from settle.plan.report.tunable import Tunable, tunable_models
from settle.plan.size import sizes_in

SCRATCH = "a new small model"  # that is trained from scratch
TIMES = ("1m", "2m", "5m", "10m", "20m", "30m", "1h", "2h", "4h", "8h", "24h")  # that a run may be given
USUAL_TIME, FEWEST_PASSES = "10m", 3  # a proposed model sees every row so often in that time
CHARACTERS, ROW_TOKENS = 3.5, 512  # of a token, about; of a row of plain text
AS_NEEDED, MOST_PASSES = "as often as it helps", 100  # most runs have settled by then
Outlook = Sequence[tuple[str, str]]


class StartChoice(TypedDict):
    """A model that can learn the data. cells: label, parameters, licence, memory, fits, time of one pass.

    outlooks: what each time gives, by the time, and "" for a run that ends when it has settled.
    """

    name: str
    cells: list[str]
    act: str
    outlooks: dict[str, Outlook]


def start_choices(characters: float, num_bytes: int, num_rows: int) -> JsonObject:
    """Return the times with their labels, the usual one, the choices, and the name of the one to propose, or ""."""
    tokens = characters / CHARACTERS
    row = max(1, round(tokens / num_rows)) if num_rows else ROW_TOKENS
    settings = PlanSettings(rows=str(max(1, round(tokens / row))), row_tokens=row)
    models = tunable_models(settings, machine_or_this(None))
    choices = [_tuned(model, tokens, "the rows" if num_rows else "the text") for model in models]
    labels = [(time, time.replace("m", " min").replace("h", " h")) for time in TIMES]
    about = {"times": [*labels, ("", "until it has settled")], "time": USUAL_TIME}
    if num_rows:
        return {**about, "proposed": _proposed(models, tokens), "choices": choices}
    return {**about, "proposed": SCRATCH, "choices": [_trained(tokens, num_bytes), *choices]}


def _trained(tokens: float, num_bytes: int) -> StartChoice:
    sizes = sizes_in([seconds(time) for time in TIMES], int(tokens), num_bytes)
    outlooks: dict[str, Outlook] = {"": [("size", "as suits the text"), ("sees the text", AS_NEEDED)]}
    for time, (parameters, seen) in zip(TIMES, sizes, strict=True):
        size = f"about {count(parameters)} parameters"
        outlooks[time] = [("size", size), ("sees the text", _often(seen / tokens))]
    cells = [f"{SCRATCH}, from scratch", "as the time allows", "your own", "–", "yes", "–"]
    return {"name": SCRATCH, "cells": cells, "act": "Choose", "outlooks": outlooks}


def _tuned(model: Tunable, tokens: float, what: str) -> StartChoice:
    label = model.name if model.chats else f"{model.name} (completes text)"
    cells = [label, count(model.shape.parameters), model.license or "not stated"]
    if model.option is None:
        return {"name": model.name, "cells": [*cells, "–", "no", "–"], "act": "", "outlooks": {}}
    memory, rate = amount(model.option.memory.value, "bytes"), model.option.rate
    outlooks: dict[str, Outlook] = {}
    for time in ("", *TIMES):
        often = _often(*(seconds(time) * r / tokens for r in (rate.value, rate.low, rate.high))) if time else AS_NEEDED
        outlooks[time] = [("model", model.name), (f"sees {what}", often), ("memory", memory)]
    cells += [memory, model.fits, duration(tokens / rate.value)]
    act = "Choose" if model.is_here else "Get"
    return {"name": model.name, "cells": cells, "act": act, "outlooks": outlooks}


def _proposed(models: Sequence[Tunable], tokens: float) -> str:
    """Return the largest model here that sees every row a few times in the usual time, else the smallest."""
    here = [(model.name, model.option.rate.value) for model in models if model.is_here and model.chats and model.option]
    fast = [name for name, rate in here if tokens / rate * FEWEST_PASSES < seconds(USUAL_TIME)]
    return fast[-1] if fast else here[0][0] if here else ""


def _often(value: float, *ends: float) -> str:
    """Format how often, with the ends of an interval: about 12 times (8.1 to 17)."""
    if value > MOST_PASSES:
        return f"up to {float(f'{value:.2g}'):,.0f} times; it ends once it has settled"
    if value < 1:
        return f"about {value:.0%} of it"
    digits = [f"{number:.2g}" if number < 10 else f"{number:.0f}" for number in (value, *ends)]
    return f"about {digits[0]} times" + (f" ({' to '.join(digits[1:])})" if ends else "")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(start_choices(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
