"""A pretrained model by name, opened for training, merging or shrinking."""

from pathlib import Path

from settle.base.event_log import Events
from settle.base.events import Say
from settle.library.resolve import resolve_whole
from settle.model.pretrained import Pretrained


def open_pretrained(name: str | Path, events: Events | None = None) -> Pretrained:
    """Open the whole model that a name or a path stands for; no weights are read.

    events: told which parts of it are left out. Raises what `resolve_whole` and `Pretrained.open` raise.
    """
    opened = Pretrained.open(resolve_whole(name).source)
    if events is not None and opened.left_out:
        events.emit(Say(text=f"{opened.name}: {opened.left_out_text}"))
    return opened
