"""The models that can be served, and what is known of each."""

from typing import ClassVar

from pydantic import Field

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.commands import Command


class Models(Command):
    """List the models that can be served: of the store, of the runs, and the adapters over them.

    `settle models show NAME` shows everything about one. --measure runs those named, or all that write, and remembers
    how fast they are here: tokens read and written per second.
    """

    positional: ClassVar[tuple[str, ...]] = ("names",)

    names: list[str] = Field(default_factory=list, description="which ones; `show NAME` for everything about one")
    measure: bool = Field(False, description="measure tokens per second, once for each file")

    def run(self, events: Events) -> int:
        try:
            from settle.server.models.model_list import list_models, show_model
        except ModuleNotFoundError as e:
            raise UsageError(f"serving needs {e.name}", "pip install 'settle-lm[serve]'") from None
        if self.names[:1] != ["show"]:
            return list_models(self.names, self.measure, events)
        if len(self.names) != 2:
            raise UsageError("which model is there to show?", "`settle models show NAME`")
        show_model(self.names[1], events)
        return 0
