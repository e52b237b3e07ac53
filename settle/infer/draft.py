"""The draft that a person names for a model."""

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import Warn
from settle.infer.child_process import Draft
from settle.library.reference import ModelRef
from settle.library.resolve import resolve_draft


def draft_for(model: ModelRef, name: str, events: Events) -> Draft:
    """Raises UsageError for what is not there or is no draft; whoever opens both files checks that their tokens are the
    same."""
    ref = resolve_draft(name)
    if ref.path.resolve() == model.weights.resolve():
        raise UsageError(
            f"{name} is the model itself", "a draft is a smaller one: `settle distill MODEL INPUTS --draft`"
        )
    if ref.proposal is None:
        return Draft(ref.path)
    speed_up = ref.proposal.speed_up
    if speed_up < 1:
        events.emit(Warn(text=f"with {name} its model was {speed_up:.2f} times as fast as alone when it was measured"))
    return Draft(ref.path, ref.proposal.tokens, ref.proposal.sure)
