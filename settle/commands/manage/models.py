"""The models there are, what is known of each, and which would fit."""

from typing import ClassVar

from pydantic import Field

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.commands import Command
from settle.library.deletion import remove_model
from settle.library.update import update_data
from settle.machine.threads import ThreadSettings


class Models(ThreadSettings, Command):
    """List, show and remove models, and find which fit this machine.

    `settle models show NAME` shows everything about one; `settle models remove NAME` deletes a pulled model. `settle
    models fit` shows which models of the catalogue fit in this machine's memory, at which type and context, and how
    fast they answer there; `settle models fit NAME --machine "rtx 4090"` is about one, on another machine. Speeds are
    forecasts with an 80 % interval. --measure runs models that are here, and remembers their tokens per second. `settle
    models update FILE --sha256 HASH` replaces the catalogue (or prices, devices, terms of providers).
    """

    is_watched: ClassVar[bool] = False
    positional: ClassVar[tuple[str, ...]] = ("names",)
    writes_answer: ClassVar[bool] = True

    names: list[str] = Field(
        default_factory=list, description="models; before them `show`, `fit` or `remove`, or `update` and a file"
    )
    measure: bool = Field(False, description="measure tokens per second, once for each file")
    families: bool = Field(False, description="list the catalogue's families, and which of them can be tuned")
    machine: str | None = Field(None, description='fit: another machine, such as "mac m4 pro 24gb" or "8x h100"')
    context: str = Field("4k", description="fit: tokens of one text: prompt and answer")
    texts: int = Field(1, gt=0, description="fit: texts answered at once")
    draft: str | None = Field(None, description="fit: a small model of the same vocabulary that proposes tokens")
    all: bool = Field(False, description="fit: list every model that fits, also the small ones")
    picture: str | None = Field(None, description="fit: write a heat map to this PNG file")
    sha256: str | None = Field(None, description="update: the hash that was published with the file")
    yes: bool = Field(False, description="remove: do not ask")

    def run(self, events: Events) -> int:
        action, names = self.names[:1], self.names[1:]
        if action == ["fit"]:
            from settle.plan.fit.report import fit_models

            how = (self.machine, self.context, self.texts, self.all, self.picture, self.measure, self.draft)
            return fit_models(names, *how, events)
        if self.families:
            if self.names:
                raise UsageError("--families is about the whole catalogue", f"`settle models {' '.join(self.names)}`")
            from settle.library.families import list_families

            list_families(events)
            return 0
        if action in (["show"], ["remove"], ["update"]) and len(names) != 1:
            what = "FILE" if action == ["update"] else "NAME"
            raise UsageError(f"nothing is named to {action[0]}", f"`settle models {action[0]} {what}`")
        if action == ["update"]:
            update_data(names[0], self.sha256, events)
            return 0
        if action == ["remove"]:
            remove_model(names[0], self.yes, events)
            return 0
        from settle.server.models.model_list import list_models, show_model

        if action == ["show"]:
            show_model(names[0], events)
            return 0
        return list_models(self.names, self.measure, events)
