"""settle audit: what left this machine, and how completely that is known."""

from typing import ClassVar

from pydantic import Field

from settle.audit.report import list_ledgers, show_ledger
from settle.base.event_log import Events
from settle.commands import Command
from settle.library.providers import show_providers


class Audit(Command):
    """Show every connection of a run: from which process, to where, declared or not, and how complete that ledger is.

    `settle audit` lists the ledgers there are. A command that is no run, such as `settle serve`, is named by itself:
    its newest ledger is shown. `settle audit providers` is about the cloud: what its providers log, keep and train on.
    """

    is_watched: ClassVar[bool] = False
    positional: ClassVar[tuple[str, ...]] = ("subject",)

    subject: str | None = Field(
        None, description="name of a run, a command such as serve, or providers; left out: list them"
    )

    def run(self, events: Events) -> int:
        if self.subject is None:
            list_ledgers(events)
        elif self.subject == "providers":
            show_providers(events)
        else:
            show_ledger(self.subject, events)
        return 0
