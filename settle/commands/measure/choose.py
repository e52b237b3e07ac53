"""settle choose: prompt, documents or tuning, measured on the person's own examples."""

from typing import ClassVar

from settle.base.event_log import Events
from settle.commands import Command
from settle.jobs.settings import ChooseSettings


class Choose(ChooseSettings, Command):
    """Find out whether a prompt, documents or tuning is enough.

    `settle choose rows.jsonl --model smollm2`: each way answers the same test questions, which nothing was built from:
    the model as it is, with the best of a few prompts, with passages of --docs, tuned on the other examples, and both.
    A first look at a few examples rules out what cannot win. The verdict is the cheapest way that is not behind the
    best; the exit code is 3 where the examples are too few to tell. After Ctrl-C the same command continues.
    """

    positional: ClassVar[tuple[str, ...]] = ("examples",)
    begins_work: ClassVar[bool] = True

    def run(self, events: Events) -> int:
        from settle.jobs.choose.choose import choose

        return choose(self, events)
