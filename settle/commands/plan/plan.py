"""settle plan: what a training run takes on any machine, and when a model of one's own pays off."""

from typing import ClassVar, Literal

from pydantic import Field

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.commands import Command
from settle.plan.report import PlanSettings
from settle.plan.report.pay_off import plan_pay_off
from settle.plan.report.train import plan_train
from settle.plan.report.tunable import list_tunable
from settle.plan.report.tune import plan_tune


class Plan(PlanSettings, Command):
    """Forecast memory, time, energy and money of a run, on any machine.

    `settle plan tune llama-3.2-3b --rows 5000 --machine "rtx 4090"` says whether tuning fits and what it takes; without
    a model it lists those that can be tuned. `settle plan train --params 1.5b --tokens 30b --machine "8x h100"` trains
    from scratch: layout, weeks, failures, money. `settle plan pay-off llama-3.1-8b --against gpt-5-mini
    --requests-per-day 2000 --machine "rtx 4090"` compares a model of one's own with an API. Every number has an
    interval of 80 %, its source and its date.
    """

    is_watched: ClassVar[bool] = False
    positional: ClassVar[tuple[str, ...]] = ("what", "model")

    what: Literal["tune", "train", "pay-off"] | None = Field(None, description="what to plan: tune, train or pay-off")
    model: str | None = Field(None, description="the model, where it has a name")

    def run(self, events: Events) -> int:
        if self.what is None:
            raise UsageError(
                "what to plan is not said: tune, train or pay-off",
                "`settle plan tune MODEL --rows 5000` forecasts tuning, `settle plan train --params 1.5b --tokens 30b` "
                "training from scratch, `settle plan pay-off MODEL --against gpt-5-mini` compares with an API",
            )
        if self.what == "tune" and self.model:
            plan_tune(self.model, self, events)
        elif self.what == "tune":
            list_tunable(self, events)
        elif self.what == "train":
            plan_train(self, events)
        else:
            plan_pay_off(self.model, self, events)
        return 0
