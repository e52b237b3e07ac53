"""The folder of a choice: what it is of, and what is ready of it, so that the same command continues after a stop."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from settle.base.errors import UsageError
from settle.base.files import home, read_json, write_json
from settle.base.run import NAME, WorkFolder, free_name
from settle.jobs.choose.answerer import Setup
from settle.jobs.choose.settings import ChooseSettings
from settle.library.reference import ModelRef
from settle.library.store import stamp_of
from settle.model.source import Source

VERSION = 2  # of how a choice is made: another one begins anew
PLAN, RESULT, PROGRESS = "plan.json", "result.json", "progress.json"
T = TypeVar("T")


def choices() -> Path:
    """Return the folder of all choices."""
    return home() / "choices"


class KeptWay(BaseModel):
    """How a way answers, for `settle choose NAME --ask`; collection: of its passages, or ""."""

    system: str
    shots: tuple[tuple[str, str], ...]
    grammar: str = ""
    collection: str
    max_tokens: int
    labels: list[str]
    weights: Path
    adapter: Path | None
    model: str

    @property
    def setup(self) -> Setup:
        return Setup(self.system, self.shots, self.grammar)

    @property
    def ref(self) -> ModelRef:
        """The model. Raises UsageError where its file is gone."""
        for path in filter(None, (self.weights, self.adapter)):
            if not path.is_file():
                raise UsageError(f"{path} is gone", "run the same `settle choose` again")
        base = ModelRef(self.model, "model", Source(self.weights, "gguf", self.model))
        if self.adapter is None:
            return base
        return ModelRef(self.model, "adapter", Source(self.adapter, "gguf", self.model), base=base)


class ChoiceFolder(WorkFolder):
    """A choice on the disk."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, path.name, "making this choice")

    @classmethod
    def of(cls, settings: ChooseSettings, ref: ModelRef, rows: object) -> "ChoiceFolder":
        """Return the folder that an earlier session began for the same examples, documents and model, or a new one.

        Raises UsageError where the name is taken by another choice.
        """
        identity = _identity(settings, ref, rows)
        known = choices()
        known.mkdir(parents=True, exist_ok=True)
        for folder in sorted(known.iterdir()):
            is_same = (folder / PLAN).is_file() and read_json(folder / PLAN).get("identity") == identity
            if is_same and settings.name in (None, folder.name):
                return cls(folder)
        if settings.name is not None and not NAME.fullmatch(settings.name):
            raise UsageError(
                f"{settings.name!r} is not a usable name", "letters, digits, dot, dash and underscore, 64 at most"
            )
        taken = [path.name for path in known.iterdir()]
        if settings.name in taken:
            raise UsageError(
                f"{settings.name} is another choice, of other examples, documents or settings", "choose another --name"
            )
        folder = known / (settings.name or free_name(settings.examples.expanduser().resolve().stem, taken))
        folder.mkdir()
        write_json(folder / PLAN, {"identity": identity, "settings": settings.model_dump(mode="json")})
        return cls(folder)

    @classmethod
    def finished(cls, name: str) -> "ChoiceFolder":
        """Return the folder of a finished choice. Raises UsageError where there is none of that name."""
        path = choices() / name
        if not (path / RESULT).is_file():
            done = ", ".join(p.parent.name for p in sorted(choices().glob(f"*/{RESULT}"))) or "none yet"
            raise UsageError(
                f"there is no finished choice {name!r}; there are: {done}", "settle choose FILE --model NAME"
            )
        return cls(path)

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
        """Return the name of something that belongs to this choice and to no other, equal in every session."""
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

    def keep_way(self, way: str, kept: KeptWay) -> None:
        write_json(self.path / _way_file(way), kept.model_dump(mode="json"))

    def kept_way(self, way: str) -> KeptWay:
        """Return how a way answers. Raises UsageError where it was not built."""
        path = self.path / _way_file(way)
        if not path.is_file():
            raise UsageError(
                f"{self.name} has no way {way!r} that is ready", f"`settle choose` lists them in {self.path}"
            )
        return KeptWay.model_validate(read_json(path))

    def _progress(self) -> dict[str, Any]:
        path = self.path / PROGRESS
        known: dict[str, Any] = read_json(path) if path.is_file() else {}
        return known


def _way_file(way: str) -> str:
    return f"way-{way.replace(' + ', '-')}.json"


def _identity(settings: ChooseSettings, ref: ModelRef, rows: object) -> str:
    files = [stamp_of(p) for p in (ref.weights, ref.adapter) if p is not None]
    asked = settings.model_dump(mode="json", exclude={"name", "dry", "threads", "examples"})
    text = json.dumps([VERSION, files, asked, rows], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:24]
