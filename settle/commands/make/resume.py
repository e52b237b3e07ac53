"""settle resume: continue a run that was stopped, however it was, to the end it would have had."""

from typing import ClassVar

from pydantic import Field

from settle.base.event_log import Events
from settle.commands import Command
from settle.machine.threads import ThreadSettings


class Resume(ThreadSettings, Command):
    """Resume an interrupted run.

    After Ctrl-C, a kill, a power cut or a full disk, it ends as it would have without the stop, to the last bit where
    the plan ends it by steps or tokens; by the clock (`--time`) it uses what is left of the time.
    """

    positional: ClassVar[tuple[str, ...]] = ("name",)

    name: str = Field(description="the run, as `settle runs` lists it")

    def run(self, events: Events) -> int:
        from settle.jobs.ranks.start import resume_run

        return resume_run(self.name, events)
