"""Training histories of other trainers: losses by step, kept checkpoints, and which of them the evaluations favour.

Read are trainer_state.json of transformers, TensorBoard's event files and CSV.
"""

import csv
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from settle.base.errors import DataError, RunError
from settle.base.files import read_json
from settle.jobs.exporters.tensorboard import scalars
from settle.wire.exchange import fields_of, objects_in

FEW = 5  # evaluations, below which a minimum may be chance
NEIGHBOURS = 1  # evaluations on either side that a smoothed one is the mean of
NOISE_STDERRS = 2.0  # a difference of fewer is noise
LEAST_SHARE = 0.005  # of the loss: a smaller rise does not matter, however sure it is
STATE, EVENTS = "trainer_state.json", "events.out.tfevents."
CHECKPOINT = re.compile(r"(?:checkpoint|step|global_step|iter|epoch)[-_=]?(\d+)\b.*")
STEPS = ("global_step", "step", "steps", "iteration", "iter", "batch", "epoch")
EVALUATED = re.compile(r"(?:^|[^a-z])(?:eval|evaluation|val|valid|validation|test|dev)(?:[^a-z]|$)")
PARTS = ("eval", "val", "validation", "test")  # folders whose writer logs what was held out
DEPTH = 3  # folders below the one that is named

Point = tuple[int, float]  # step, loss
Points = dict[int, float]


@dataclass(frozen=True)
class History:
    """What a trainer logged."""

    path: Path  # that was read
    train: Sequence[Point]  # in the order of the steps, finite or not
    evaluations: Sequence[Point]
    checkpoints: Sequence[int] = ()  # steps that there is a folder of
    keeps_best: bool = False  # whether the trainer says that it kept the best weights

    @property
    def finite(self) -> list[Point]:
        return [(step, loss) for step, loss in self.evaluations if math.isfinite(loss)]

    @property
    def noise(self) -> float:
        """Standard deviation of one evaluation about its trend, by second differences.

        They are zero on a straight line, and for independent noise have six times its variance.
        """
        losses = [loss for _, loss in self.finite]
        bends = [a - 2 * b + c for a, b, c in zip(losses, losses[1:], losses[2:], strict=False)]
        return 1.4826 * median(abs(bend) for bend in bends) / math.sqrt(6) if bends else math.inf

    @property
    def smoothed(self) -> list[Point]:
        """Each evaluation as the mean of it and its neighbours."""
        points = self.finite
        return [
            (step, fmean(loss for _, loss in points[max(0, at - NEIGHBOURS) : at + NEIGHBOURS + 1]))
            for at, (step, _) in enumerate(points)
        ]

    def best(self) -> Point | None:
        """Return the smoothed evaluation with the lowest loss; None where there are too few."""
        return min(self.smoothed, key=lambda point: point[1]) if len(self.finite) >= FEW else None

    def rise(self) -> tuple[float, float] | None:
        """Return how much higher the loss is at the end than at its best, and how much of that noise could make.

        None where there are too few evaluations.
        """
        best = self.best()
        if best is None:
            return None
        end = fmean(loss for _, loss in self.finite[-1 - NEIGHBOURS :])
        both, lowest = math.sqrt(1 / (1 + NEIGHBOURS) + 1 / (1 + 2 * NEIGHBOURS)), math.sqrt(1 / (1 + 2 * NEIGHBOURS))
        # the lowest of n is low by chance too: by sqrt(2 ln n) standard deviations at most, as n grows
        could_be = self.noise * (NOISE_STDERRS * both + math.sqrt(2 * math.log(len(self.finite))) * lowest)
        return end - best[1], max(could_be, LEAST_SHARE * abs(best[1]))

    def checkpoint(self) -> int | None:
        """Return the step of the kept checkpoint nearest to the best evaluation; None where none is kept."""
        best = self.best()
        return min(self.checkpoints, key=lambda step: abs(step - best[0])) if best and self.checkpoints else None

    def advice(self) -> str:
        """Return which checkpoint to take, in a sentence."""
        best, rise = self.best(), self.rise()
        counts = f"{len(self.train):,} training losses, {len(self.evaluations):,} evaluations"
        if best is None or rise is None:
            return f"{self.path.name}: {counts}: too few evaluations to say which checkpoint is best"
        if rise[0] <= rise[1]:
            advice = "the end is as good as the best within the noise of the evaluations, so take the last checkpoint"
        else:
            kept = self.checkpoint()
            take = f"take checkpoint {kept:,}" if kept is not None else "no checkpoint from there was kept"
            advice = f"the loss was lowest about step {best[0]:,}: {take}"
        return f"{self.path.name}: {counts}; {advice}"


def find_history(path: Path) -> list[Path]:
    """Return the files of a history at a path: the file itself, or the newest of its kind in a folder; [] for none."""
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
    """Return the history at a path where `find_history` finds one. Raises DataError for a damaged file."""
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
    state = fields_of(state)
    if not isinstance(state.get("log_history"), list):
        fix = "give the trainer_state.json that the Trainer of transformers wrote"
        raise DataError(f"{path} has no log_history", fix)
    train: Points = {}
    evaluations: Points = {}
    for entry in objects_in(state["log_history"]):
        step = entry.get("step")
        for name, value in entry.items():
            if not isinstance(step, int) or not isinstance(value, int | float):
                continue
            if name == "loss":
                train[step] = float(value)
            elif re.fullmatch(r"eval_(.*_)?loss", name):
                evaluations.setdefault(step, float(value))
    own = _step_of(path.parent.name)
    checkpoints, keeps_best = sorted({*kept, *([own] if own else [])}), bool(state.get("best_model_checkpoint"))
    return History(path, sorted(train.items()), sorted(evaluations.items()), checkpoints, keeps_best)


def _logged(files: Sequence[Path]) -> Iterator[tuple[str, int, float]]:
    """Yield name, step and value of every loss that files hold."""
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
