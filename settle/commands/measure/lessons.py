"""settle lessons: why models break, shown on the person's own."""

from typing import ClassVar

from pydantic import Field

from settle.base.event_log import Events
from settle.commands import Command
from settle.machine.threads import ThreadSettings


class Lessons(ThreadSettings, Command):
    """Show on your own model why models break: eight lessons, each an A that works and a B that breaks.

    The examples are drawn by rule from a seed, from made-up facts and the model's own vocabulary, and measured by the
    probability of the answer. Where a model does not show it, or lacks what a lesson needs, it says so.
    """

    positional: ClassVar[tuple[str, ...]] = ("model", "lesson")
    writes_answer: ClassVar[bool] = True

    model: str = Field(description="a run, a model of the store, a folder in Hugging Face's layout, or a .gguf file")
    lesson: str | None = Field(None, description="name or number of one lesson, with its example; all if not given")
    draws: int = Field(12, ge=4, le=1000, description="how many times A and B are drawn for each lesson")
    seed: int = Field(0, ge=0, description="same seed, same examples")

    def run(self, events: Events) -> int:
        from settle.doctor.demonstration.session import lessons

        return lessons(self.model, self.lesson, events, self.draws, self.seed)
