"""The models that can be served, and what is known of each."""

from typing import ClassVar

from pydantic import Field

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.commands import Command
from settle.library.deletion import remove_model
from settle.library.update import update_data
from settle.machine.threads import ThreadSettings


class Models(ThreadSettings, Command):
    """List the models that can be served: of the store, of the runs, and the adapters over them.

    `settle models show NAME` shows everything about one. --measure runs those named, or all that write, and remembers
    how fast they are here: tokens read and written per second. `settle models remove NAME` deletes a pulled model.
    `settle models update FILE --sha256 HASH` replaces the catalogue (or prices, devices, terms of providers).
    """

    is_watched: ClassVar[bool] = False
    positional: ClassVar[tuple[str, ...]] = ("names",)
    writes_answer: ClassVar[bool] = True

    names: list[str] = Field(
        default_factory=list, description="which ones; `show NAME`, `remove NAME` or `update FILE`"
    )
    measure: bool = Field(False, description="measure tokens per second, once for each file")
    sha256: str | None = Field(None, description="of `update FILE`: the hash that was published with it")
    yes: bool = Field(False, description="remove without asking")

    def run(self, events: Events) -> int:
        action = self.names[0] if self.names[:1] in (["show"], ["remove"], ["update"]) else "list"
        if action != "list" and len(self.names) != 2:
            what = "FILE" if action == "update" else "NAME"
            raise UsageError(f"nothing is named to {action}", f"`settle models {action} {what}`")
        if action == "update":
            update_data(self.names[1], self.sha256, events)
            return 0
        if action == "remove":
            remove_model(self.names[1], self.yes, events)
            return 0
        from settle.server.models.model_list import list_models, show_model

        if action == "list":
            return list_models(self.names, self.measure, events)
        show_model(self.names[1], events)
        return 0
