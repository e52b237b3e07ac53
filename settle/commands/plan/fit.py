"""What fits on a machine, and how fast it answers."""

from typing import ClassVar

from pydantic import Field

from settle.base.event_log import Events
from settle.commands import Command


class FitModels(Command):
    """Show which models fit in a machine's memory, at which type and context, and how fast they answer there.

    Without MODEL: every model of the catalogue on this machine, each at its finest type that fits. A model is a name of
    the catalogue, of the store, of Ollama, or a file. --machine describes another computer: "mac m4 pro 24gb",
    "2x rtx 3090", "8x h100", or numbers by hand. Speeds are forecasts with an 80 % interval.
    """

    is_watched: ClassVar[bool] = False
    positional: ClassVar[tuple[str, ...]] = ("models",)

    models: list[str] = Field(default_factory=list, description="names of the catalogue or the store, or files")
    machine: str | None = Field(None, description='another machine, such as "rtx 4090"; this one by default')
    context: str = Field("4k", description="tokens of one text: prompt and answer")
    texts: int = Field(1, gt=0, description="texts answered at once")
    draft: str | None = Field(None, description="a small model of the same vocabulary that proposes tokens")
    all: bool = Field(False, description="list every model that fits, also the small ones")
    measure: bool = Field(False, description="correct the speeds by short runs of a few models that are here")
    picture: str | None = Field(None, description="write a heat map to this PNG file")

    def run(self, events: Events) -> int:
        from settle.plan.fit.report import fit_models

        asked = (self.models, self.machine, self.context, self.texts, self.all, self.picture, self.measure, self.draft)
        return fit_models(*asked, events)
