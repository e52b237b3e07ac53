"""The draft that a person names for a model, and what is said of it."""

from settle.base.errors import UsageError
from settle.base.events import Events
from settle.infer.process import Draft
from settle.infer.served import Served, drafting

ABOUT = "a small model that proposes tokens, for speed: a run of `settle distill --draft`, or any with the same tokens"


def draft_for(model: Served, name: str, events: Events) -> Draft:
    """Raises UsageError for what is not there, is no draft or has another tokenizer, FormatError for a broken file."""
    from settle.data.tokenizers_alike import require_same_tokens
    from settle.formats.gguf import read_gguf

    draft, speed_up = drafting(name)
    if draft.path.resolve() == model.path.resolve():
        raise UsageError(
            f"{name} is the model itself", "a draft is a smaller one: `settle distill MODEL INPUTS --draft`"
        )
    ours, its = (read_gguf(path).metadata for path in (model.path, draft.path))
    require_same_tokens(ours, its, (model.name, name))
    if speed_up is not None and speed_up < 1:
        events.emit(
            "warn", text=f"with {name} its model was {speed_up:.2f} times as fast as alone when it was measured"
        )
    return draft
