"""The draft that a person names for a model, and what is said of it."""

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import Warn
from settle.infer.child_process import Draft
from settle.infer.resolve import Served, drafting

ABOUT = "a small model that proposes tokens, for speed: a run of `settle distill --draft`, or any with the same tokens"


def draft_for(model: Served, name: str, events: Events) -> Draft:
    """Raises UsageError for what is not there or is no draft; whether it reads the model's tokens is asked of both
    files by who opens them."""
    draft, speed_up = drafting(name)
    if draft.path.resolve() == model.path.resolve():
        raise UsageError(
            f"{name} is the model itself", "a draft is a smaller one: `settle distill MODEL INPUTS --draft`"
        )
    if speed_up is not None and speed_up < 1:
        events.emit(Warn(text=f"with {name} its model was {speed_up:.2f} times as fast as alone when it was measured"))
    return draft
