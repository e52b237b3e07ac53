"""settle pick: choose the model for a task, on this machine."""

from typing import ClassVar

from settle.base.event_log import Events
from settle.commands import Command
from settle.jobs.settings import PickSettings


class Pick(PickSettings, Command):
    """Choose a model for a task by measuring a few on your prompts.

    `settle pick "mails in German" --prompts FILE`: what cannot run here, or may not be used, is left out with the
    reason. At most four are measured, those on this machine first: time to the first token, tokens per second, memory,
    and how well they answer. A model that is shown to be worse is asked no more. A task such as "embeddings for search"
    is measured on rows of a question and its passage. Exit code 3: none of them will do. After Ctrl-C the same command
    continues.
    """

    positional: ClassVar[tuple[str, ...]] = ("task",)
    begins_work: ClassVar[bool] = True

    def run(self, events: Events) -> int:
        from settle.jobs.pick.pick import pick

        return pick(self, events)
