"""Giving a run another name, where nothing that goes by the old one would be lost."""

import re
from collections.abc import Sequence

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import ResultReady, Say
from settle.base.run import Run
from settle.base.server_state import client_names
from settle.jobs.seeds import MARK
from settle.jobs.settings import DISTILLED, MEMBER, UNJUDGED
from settle.library.store import store

RELATED = re.compile(rf"(.+)({MARK}\d+|{UNJUDGED}|{MEMBER}\d+|{DISTILLED})")  # names by which runs find each other


def rename_run(names: Sequence[str], events: Events) -> None:
    """Rename the run of the first name to the second one; the first one still leads to it.

    Raises UsageError where runs would no longer find each other, or a model or a client's name would be hidden;
    otherwise as `Run.rename`.
    """
    if len(names) != 2:
        raise UsageError("renaming takes two names", "`settle runs rename OLD NEW`")
    run, new = Run.find(names[0]), names[1]
    if new == run.name:
        raise UsageError(f"{run.name} has that name already", "give another one")
    if RELATED.fullmatch(run.name):
        raise UsageError(f"{run.name} is found by its name from the run that it belongs to", "leave its name as it is")
    for other in Run.all():
        if (match := RELATED.fullmatch(other.name)) and match[1] in (run.name, new):
            raise UsageError(
                f"{other.name} is found by the name {match[1]!r}", "rename neither, or choose another name"
            )
    if (store() / new / "model.json").is_file():
        raise UsageError(f"{new!r} is a model of the store", "choose another name")
    if new in client_names():
        raise UsageError(f"clients of the server call another model {new!r}", "choose another name")
    old, renamed = run.name, run.rename(new)
    events.emit(Say(text=f"{old} is now {new}; the old name still leads to it"))
    events.emit(ResultReady(result={"name": new, "earlier": [*renamed.earlier], "path": str(renamed.path)}))
