"""settle shrink: a model made smaller or faster, to a budget, with what it loses measured."""

from typing import ClassVar

from settle.base.event_log import Events
from settle.commands import Command
from settle.jobs.job import find_job, start
from settle.jobs.settings import ShrinkSettings


class Shrink(ShrinkSettings, Command):
    """Make a model smaller or faster, and measure what it loses.

    MODEL is a run, a model of the store, a folder in Hugging Face's layout or a .gguf file. INPUTS are files of text or
    of examples that it is used for: most of them decide where bits are spent, the others judge the result. Without any,
    a text that settle brings is used.

    One budget: --to 400MB, --to Q4_K_M, --speed 40 or --lose 1%; --to W4A16 writes a folder for vLLM. --plan shows
    what every option is expected to cost, and then what it does. --vocabulary removes the tokens that your text does
    not need, before a budget or without one.
    """

    positional: ClassVar[tuple[str, ...]] = ("model", "inputs")
    begins_work: ClassVar[bool] = True

    def run(self, events: Events) -> int:
        return start(find_job("shrink"), self, events).exit_code or 0
