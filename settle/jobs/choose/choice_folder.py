"""The folder of a choice: what it is of, and what is ready of it, so that the same command continues after a stop."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path

from settle.base.errors import UsageError
from settle.base.files import home, read_json, write_json
from settle.base.run import NAME, free_name
from settle.jobs.choose.settings import ChooseSettings
from settle.library.reference import ModelRef
from settle.library.store import stamp_of

VERSION = 2  # of how a choice is made: another one begins anew
PLAN, RESULT = "plan.json", "result.json"


def choices() -> Path:
    """Where all of them are."""
    return home() / "choices"


def folder_for(settings: ChooseSettings, ref: ModelRef, rows: object) -> Path:
    """The folder of this choice: the one that an earlier session began for the same examples, documents and model, or a
    new one. Raises UsageError where the name is taken by another choice."""
    identity = _identity(settings, ref, rows)
    known = choices()
    known.mkdir(parents=True, exist_ok=True)
    for folder in sorted(known.iterdir()):
        is_same = (folder / PLAN).is_file() and read_json(folder / PLAN).get("identity") == identity
        if is_same and settings.name in (None, folder.name):
            return folder
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
    return folder


def note(folder: Path, **figures: object) -> None:
    """Adds figures to what the folder keeps of the work so far."""
    path = folder / "progress.json"
    write_json(path, {**noted(folder), **figures})


def noted(folder: Path) -> Mapping[str, object]:
    """What `note` kept."""
    path = folder / "progress.json"
    known: Mapping[str, object] = read_json(path) if path.is_file() else {}
    return known


def own_name(folder: Path, what: str, wanted: str, taken: Collection[str]) -> str:
    """The name of something that belongs to this choice and to no other, the same in every session. what: its key in
    what `note` keeps; taken: names that are in use, when it is first asked for."""
    known = noted(folder).get(what)
    if isinstance(known, str):
        return known
    name = free_name(wanted, taken)
    note(folder, **{what: name})
    return name


def keep_way(folder: Path, way: str, ref: ModelRef, setup: Mapping[str, object]) -> None:
    """Keeps how a way answers, for `settle choose NAME --ask`."""
    files = {"weights": str(ref.weights), "adapter": str(ref.adapter) if ref.adapter else None, "model": ref.name}
    write_json(folder / _way_file(way), {**setup, **files})


def kept_way(folder: Path, way: str) -> Mapping[str, object]:
    """What `keep_way` kept. Raises UsageError where that way was not built."""
    path = folder / _way_file(way)
    if not path.is_file():
        raise UsageError(f"{folder.name} has no way {way!r} that is ready", f"`settle choose` lists them in {folder}")
    known: Mapping[str, object] = read_json(path)
    return known


def _way_file(way: str) -> str:
    return f"way-{way.replace(' + ', '-')}.json"


def _identity(settings: ChooseSettings, ref: ModelRef, rows: object) -> str:
    files = [stamp_of(p) for p in (ref.weights, ref.adapter) if p is not None]
    asked = settings.model_dump(mode="json", exclude={"name", "dry", "threads", "examples"})
    text = json.dumps([VERSION, files, asked, rows], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:24]
