"""Finds and reads what a trainer logged: trainer_state.json of transformers, TensorBoard's event files, CSV."""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from settle.base.errors import DataError, RunError
from settle.base.files import read_json
from settle.doctor.histories.history import History
from settle.doctor.histories.tensorboard import scalars

STATE, EVENTS = "trainer_state.json", "events.out.tfevents."
CHECKPOINT = re.compile(r"(?:checkpoint|step|global_step|iter|epoch)[-_=]?(\d+)\b.*")
STEPS = ("global_step", "step", "steps", "iteration", "iter", "batch", "epoch")
EVALUATED = re.compile(r"(?:^|[^a-z])(?:eval|evaluation|val|valid|validation|test|dev)(?:[^a-z]|$)")
PARTS = ("eval", "val", "validation", "test")  # folders whose writer logs what was held out
DEPTH = 3  # folders below the one that is named
Points = dict[int, float]


def find_history(path: Path) -> list[Path]:
    """The files of a history at a path: the file itself, or of a folder the newest of its kind; none where there is no
    history."""
    if path.is_file():
        return [path] if _is_history(path) else []
    if not path.is_dir():
        return []
    states = _below(path, STATE)
    if states:
        return [max(states, key=lambda file: (_step_of(file.parent.name) or 1 << 62, file.stat().st_mtime))]
    events = _below(path, EVENTS + "*")
    if events:
        newest = max(events, key=lambda file: file.stat().st_mtime).parent
        # a writer of each tag may have a folder of its own beside the first
        return sorted(
            file for file in events if newest in (file.parent, *file.parents) or file.parent in newest.parents
        )
    return [file for file in _below(path, "*.csv") if _is_history(file)][:1]


def read_history(path: Path) -> History:
    """The history at a path that `find_history` finds one at. Raises DataError for a file that is damaged."""
    files = find_history(path)
    if not files:
        known = f"{STATE}, TensorBoard's {EVENTS}…, or CSV with a column of steps and one of losses"
        raise DataError(f"there is no training history in {path}", f"known are {known}")
    folder = path if path.is_dir() else path.parent
    kept = sorted({step for place in folder.iterdir() if place.is_dir() and (step := _step_of(place.name)) is not None})
    if files[0].name == STATE:
        return _of_state(files[0], kept)
    train: Points = {}
    evaluations: Points = {}
    for name, step, value in _logged(files):
        (evaluations if EVALUATED.search(name) else train)[step] = value
    return History(path, sorted(train.items()), sorted(evaluations.items()), kept)


def _is_history(path: Path) -> bool:
    if path.name == STATE or path.name.startswith(EVENTS):
        return True
    if path.suffix.lower() != ".csv":
        return False
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        names = [name.strip().lower() for name in next(csv.reader(file), [])]
    return any(name in STEPS for name in names) and any("loss" in name for name in names)


def _below(folder: Path, pattern: str) -> list[Path]:
    return [p for depth in range(DEPTH + 1) for p in folder.glob("*/" * depth + pattern) if p.is_file()]


def _step_of(name: str) -> int | None:
    found = CHECKPOINT.fullmatch(name.lower())
    return int(found[1]) if found else None


def _of_state(path: Path, kept: Sequence[int]) -> History:
    try:
        state = read_json(path)
    except RunError as e:
        raise DataError(e.what, "give the trainer_state.json of an earlier checkpoint") from None
    log = state.get("log_history") if isinstance(state, Mapping) else None
    if not isinstance(log, list):
        raise DataError(
            f"{path} has no log_history", "give the trainer_state.json that the Trainer of transformers wrote"
        )
    train: Points = {}
    evaluations: Points = {}
    for entry in log:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("step"), int):
            continue
        for name, value in entry.items():
            if name == "loss" and isinstance(value, int | float):
                train[entry["step"]] = float(value)
            elif re.fullmatch(r"eval_(.*_)?loss", str(name)) and isinstance(value, int | float):
                evaluations.setdefault(entry["step"], float(value))
    best = state.get("best_model_checkpoint")
    own = _step_of(path.parent.name)
    return History(
        path, sorted(train.items()), sorted(evaluations.items()), sorted({*kept, *([own] if own else [])}), bool(best)
    )


def _logged(files: Sequence[Path]) -> Iterator[tuple[str, int, float]]:
    """Name, step and value of every loss that files hold."""
    for file in files:
        if file.name.startswith(EVENTS):
            own = file.parent.name.lower()
            place = own if own in PARTS else ""  # Keras writes train/ and validation/
            for tag, step, value in scalars(file):
                if "loss" in tag.lower():
                    yield f"{place}/{tag}".lower(), step, value
        else:
            yield from _of_csv(file)


def _of_csv(path: Path) -> Iterator[tuple[str, int, float]]:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.DictReader(file)
        names = {name: (name or "").strip().lower() for name in rows.fieldnames or ()}
        by = next((n for wanted in STEPS for n, low in names.items() if low == wanted), None)
        for row in rows:
            for name, low in names.items():
                try:
                    if "loss" in low:
                        yield low, int(float(row[by or ""])), float(row[name])
                except (TypeError, ValueError, KeyError):
                    continue  # an empty cell: many loggers write a row for each kind of value
