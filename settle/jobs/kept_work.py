"""Work that the same command continues after a stop, such as a choice: its folder, and what is kept there."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import Say, WorkStarted
from settle.base.files import home, write_json
from settle.base.run import NAME, WorkFolder, free_name
from settle.base.settings import Settings
from settle.base.stop_signals import Stopping
from settle.jobs.job import C, Job, follow

PLAN, RESULT, PROGRESS = "plan.json", "result.json", "progress.json"
T = TypeVar("T")


class KeptResult(BaseModel):
    """What result.json has of such work."""

    model_config = ConfigDict(frozen=True)

    folder: str = ""
    verdict: str
    why: str
    notes: Sequence[str]
    measure: str  # title of the score
    pairs: Sequence[Mapping[str, object]]  # of what was compared
    audit: Mapping[str, object] = Field({})  # what left this machine


class KeptFolder(WorkFolder):
    """A folder of work that the same command continues: plan.json, progress.json, events.jsonl, result.json."""

    parent: ClassVar[str]  # of settle's home
    what: ClassVar[str]  # the work, for the user

    def __init__(self, path: Path) -> None:
        super().__init__(path, path.name, f"making this {self.what}")

    @classmethod
    def of(cls, about: object, settings: Settings, name: str | None, usual_name: str) -> Self:
        """Return the folder that an earlier session began for the same work, or a new one.

        about: anything that JSON can hold, equal for the same work. name: that the user gave, if any. Raises UsageError
        where it is taken by other work.
        """
        text = json.dumps(about, sort_keys=True, default=str)
        identity = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:24]
        known = home() / cls.parent
        known.mkdir(parents=True, exist_ok=True)
        for folder in map(cls, sorted(known.iterdir())):
            is_same = folder.has_begun and folder.read(PLAN).get("identity") == identity
            if is_same and name in (None, folder.name) and folder.is_open:
                return folder
        if name is not None and not NAME.fullmatch(name):
            raise UsageError(f"{name!r} is not a usable name", "letters, digits, dot, dash and underscore, 64 at most")
        taken = [path.name for path in known.iterdir()]
        if name in taken:
            raise UsageError(
                f"{name} is another {cls.what}, of other examples, documents or settings", "choose another --name"
            )
        path = known / (name or free_name(usual_name, taken))
        path.mkdir()
        write_json(path / PLAN, {"identity": identity, "settings": settings.model_dump(mode="json")})
        return cls(path)

    @property
    def is_open(self) -> bool:
        """Return whether the same command works in this folder again."""
        return True

    def finish(self, result: KeptResult) -> None:
        """Write result.json: its presence means that the work is finished."""
        write_json(self.path / RESULT, result.model_dump(mode="json"))

    def kept(self, key: str, kind: type[T]) -> T | None:
        """Return what was kept under a key, None where there is nothing of that kind."""
        with contextlib.suppress(KeyError, ValidationError):
            return TypeAdapter(kind).validate_python(self._progress()[key])
        return None

    def keep(self, key: str, value: object) -> None:
        """Keep a value, in place of what was kept under that key."""
        written = TypeAdapter(type(value)).dump_python(value, mode="json")
        write_json(self.path / PROGRESS, {**self._progress(), key: written})

    def once(self, key: str, kind: type[T], make: Callable[[], T]) -> T:
        """Return what an earlier session kept under a key, or make and keep it."""
        known = self.kept(key, kind)
        if known is None:
            known = make()
            self.keep(key, known)
        return known

    def own_name(self, key: str, wanted: str, taken: Collection[str]) -> str:
        """Return the name of something that belongs to this work and to no other, equal in every session."""
        return self.once(key, str, lambda: free_name(wanted, taken))

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time within to what a part took, which is kept over all sessions."""
        began = time.monotonic()
        try:
            yield
        finally:
            known = self.spent()
            self.keep("spent", known | {part: known.get(part, 0.0) + time.monotonic() - began})

    def spent(self) -> dict[str, float]:
        """Return the seconds by part so far."""
        return self.kept("spent", dict[str, float]) or {}

    def _progress(self) -> dict[str, Any]:
        return self.read(PROGRESS) or {}


@contextlib.contextmanager
def stoppable(kept: str, events: Events) -> Iterator[Stopping]:
    """Let a signal end work that the same command continues, and say so. kept: what of it is kept."""
    with Stopping() as stopping:
        try:
            yield stopping
        except KeyboardInterrupt:
            events.emit(Say(text=f"stopped; {kept} is kept, and the same command continues"))
            raise


def carry_out(job: Job[C], context: C) -> int:
    """Follow the stages in the folder of the work, and return the exit code. Raises SettleError."""
    folder, events = context.folder, context.events
    events.emit(WorkStarted(what=job.name, name=folder.name, path=str(folder.path)))
    with folder.lock():
        events.move_to(folder.events)
        return follow(job, context).exit_code or 0
