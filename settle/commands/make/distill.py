"""settle distill: a small model learns from a large one."""

from typing import ClassVar

from settle.base.event_log import Events
from settle.commands import Command
from settle.jobs.settings import DistillSettings


class Distill(DistillSettings, Command):
    """Distil a large model into a smaller one and measure the match.

    TEACHER is a run, a model of the store, a folder in Hugging Face's layout or a .gguf file. INPUTS are texts or
    examples, as for `settle tune`. The student is the teacher with blocks removed (--drop-layers), or narrower
    (--width), or in a given shape (--into), or another model with the same tokenizer (--student).

    The exit code is 3 when the student did not come closer to its teacher on the held-out rows.
    """

    positional: ClassVar[tuple[str, ...]] = ("teacher", "inputs")
    begins_work: ClassVar[bool] = True
    essential: ClassVar[tuple[str, ...]] = (
        "student", "drop_layers", "width", "into", "draft", "answers", "name", "time", "epochs", "steps", "tolerance",
        "dry", "recipe", "device", "dtype", "threads",
    )  # fmt: skip

    def run(self, events: Events) -> int:
        from settle.jobs.job import find_job, start

        return start(find_job("distill"), self, events).exit_code or 0
