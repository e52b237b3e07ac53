"""A lab: changes to a recipe, each tried by pairs of runs, kept or discarded so that a session can hardly fool itself.

A lab is a folder of $SETTLE_HOME/labs, named after its recipe: lab.json (what it began with), ledger.jsonl (every
change and every opening of the locked text, each line with a hash of all before it), measured.jsonl (every run), and
best.toml, the recipe with all changes that were kept.
"""

import hashlib
import json
import math
import secrets
import shutil
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from settle.base.amounts import seconds
from settle.base.errors import RunError, UsageError
from settle.base.event_log import Events, Listener
from settle.base.events import Event, Listing, Progress, ResultReady, Say, Step, WorkStarted
from settle.base.files import JsonObject, append_lines, home, read_lines, write_atomic, write_json
from settle.base.run import Run, WorkFolder, free_name
from settle.base.run.result import NOT_BETTER
from settle.base.settings import read_recipe, recipe_text, resolve
from settle.base.statistics import Interval
from settle.base.version import refuse_newer
from settle.base.words.amounts import duration
from settle.experiment.arm import Arm, MeasureRecord, digest
from settle.experiment.recipes import Noise, error_of, evidence, gain_interval, state
from settle.experiment.run import ArmFailed, ArmPace, Lane, Runner, in_turn
from settle.jobs.kept_work import stoppable
from settle.jobs.settings import LabSettings, TrainSettings, absolute_paths
from settle.jobs.short_run import Measurement, Side, measured_run, planned_run
from settle.train.live_run import IDENTITY
from settle.train.training_plan import TrainingPlan

VERSION = 1  # of lab.json
UNDECIDED = 4  # exit code
CODES = {"kept": 0, "discarded": NOT_BETTER, "undecided": UNDECIDED}
NOISE_PAIRS = 3  # runs with and without a change that cannot matter, by which the noise is known at the start
MOST_FAILED = 2  # runs of the recipe that may fail in pairs of one change
UNTOUCHED = ("name", "dry", "recipe", "seed", "seeds", "launch", "hosts", "gpus", "keep_checkpoints", "sample")
BY_CLOCK = ("seconds", "seconds_after", "seconds_judging", "step_seconds", "waiting")  # of a plan: differ each time
LOCKED = "the locked text: {}"


class LabPlan(BaseModel):
    """What a lab began with. asked: the recipe file, as it was; recipe: with what must not differ between runs."""

    model_config = ConfigDict(frozen=True)

    version: int = VERSION
    asked: dict[str, Any]
    recipe: dict[str, Any]
    identity: str
    corpus: str
    key: str  # random: seeds are drawn by it


class Entry(BaseModel):
    """A line of the ledger: a change has begun, it was judged, or the locked text was read."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["begun", "judged", "opened"]
    time: float
    number: int  # of the change, or of the opening
    change: str = ""  # as it was given
    base: str = ""  # identity of the recipe that it is compared with
    identity: str = ""  # of the recipe that it makes
    recipe: dict[str, Any] = {}
    noise: tuple[float, int] = (0.0, 0)  # what was known of it before
    state: str = ""
    why: str = ""
    gains: tuple[float, ...] = ()
    seconds: float = 0.0
    corpus: str = ""


class LabLedger:
    """An append-only file of entries, each with a hash over itself and all before it. Raises RunError for others."""

    def __init__(self, path: Path) -> None:
        self._path, self._hash = path, ""
        self.entries: list[Entry] = []
        for line in read_lines(path):
            stored = line.pop("hash", None)
            if stored != self._hashed(line):
                raise RunError(
                    f"{path} was changed: line {len(self.entries) + 1} does not follow from those before it",
                    "restore the file, or begin another lab",
                )
            try:
                self.entries.append(Entry.model_validate(line))
            except ValidationError as e:
                raise RunError(f"{path} is damaged: {e.errors()[0]['msg']}", "restore the file") from None
            self._hash = str(stored)

    def add(self, entry: Entry) -> None:
        """Append an entry, which then survives a power cut. Raises ResourceError when it cannot be written."""
        line = entry.model_dump(mode="json", exclude_defaults=True)
        hashed = self._hashed(line)
        append_lines(self._path, [{**line, "hash": hashed}], sync=True, then="and run the same command again")
        self.entries.append(entry)
        self._hash = hashed

    def of(self, kind: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.kind == kind]

    def _hashed(self, line: JsonObject) -> str:
        text = json.dumps(line, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256((self._hash + text).encode()).hexdigest()


class Lab(WorkFolder):
    """The folder of a lab, with what it knows."""

    def __init__(self, path: Path, plan: LabPlan) -> None:
        super().__init__(path, path.name, "working in this lab")
        self.plan, self.ledger = plan, LabLedger(path / "ledger.jsonl")
        self.runs = path / "runs"

    @property
    def kept(self) -> list[Entry]:
        return [entry for entry in self.ledger.of("judged") if entry.state == "kept"]

    @property
    def best(self) -> dict[str, Any]:
        """The recipe with every change that was kept."""
        return self.kept[-1].recipe if self.kept else self.plan.recipe

    @property
    def identity(self) -> str:
        return self.kept[-1].identity if self.kept else self.plan.identity

    @property
    def openings(self) -> int:
        """How often the locked text was read, by any lab of the same text."""
        others = (LabLedger(path) for path in (home() / "labs").glob("*/ledger.jsonl"))
        return sum(entry.corpus == self.plan.corpus for ledger in others for entry in ledger.of("opened"))

    def seed(self, *parts: object) -> int:
        """Return the seed of a pair: nobody can know it before the lab exists, and no two pairs share one."""
        text = "|".join(map(str, (self.plan.key, *parts)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1

    def judged(self, number: int) -> Entry | None:
        """Return the latest judgement of a change."""
        return next((e for e in reversed(self.ledger.of("judged")) if e.number == number), None)

    def noise(self, pairs: Sequence[float]) -> Noise:
        """Return what is known of the noise now. pairs: gains of those that the lab began with."""
        known = Noise.of_equals(pairs)
        latest = {entry.number: entry.gains for entry in self.ledger.of("judged")}
        for gains in latest.values():
            known = known.with_pairs(gains)
        return known


# --- the runs of a lab ---


class RunRecord(MeasureRecord[Measurement]):
    """The runs of a lab, by recipe, seed and side."""

    def _read(self, line: JsonObject) -> tuple[str, Measurement]:
        loss = math.inf if line["loss"] is None else float(line["loss"])
        return str(line["run"]), Measurement(loss, int(line["steps"]), float(line["seconds"]), str(line["failed"]))

    def _line(self, key: str, value: Measurement) -> JsonObject:
        return {"run": key, **asdict(value), "loss": None if value.failed else value.loss}


class RecipeArm(Arm[int, Measurement]):
    """A recipe whose items are seeds.

    Attributes:
        folder: of its runs.
        side: of the text, that is read at the end.
        is_shaken: its first weights differ by nothing that matters.
        progress: is told how far a run is.
    """

    def __init__(
        self,
        name: str,
        recipe: JsonObject,
        folder: Path,
        side: Side = "selection",
        is_shaken: bool = False,
        progress: Listener = lambda event: None,
    ) -> None:
        self.name, self.recipe, self.side, self.is_shaken = name, recipe, side, is_shaken
        self.key = digest([recipe, side, is_shaken])
        self._folder, self._progress = folder, progress

    def run_key(self, seed: int) -> str:
        """Return the name of its run with that seed, in the record and of its folder."""
        return f"{self.key}-{seed}"

    def measure(self, item: int) -> Measurement:
        run = Run(self._folder / self.run_key(item))
        return measured_run("train", {**self.recipe, "seed": item}, run, self.side, self.is_shaken, self._shown)

    def _shown(self, event: Event) -> None:
        match event:
            case Step():
                self._progress(Progress(what=f"run of {self.name}", done=event.step, total=None, unit="steps"))


@dataclass(frozen=True)
class PlannedRecipe:
    """What a recipe comes to on this machine. identity: equal for recipes whose runs with one seed are the same."""

    plan: TrainingPlan
    corpus: str
    identity: str


def planned(recipe: JsonObject, folder: Path) -> PlannedRecipe:
    """Return what a recipe comes to; nothing is built. Raises SettleError for a recipe that cannot be run."""
    run = Run(folder / f"plan-{digest(recipe)}")
    run.path.mkdir(parents=True, exist_ok=True)
    c = planned_run("train", recipe, run)
    values = {**c.plan.to_json(), "corpus": c.corpus.fingerprint}
    known = {key: values[key] for key in IDENTITY if key != "loop"}
    numbers = {key: value for key, value in c.plan.loop.model_dump().items() if key not in (*BY_CLOCK, "seed")}
    return PlannedRecipe(c.plan, c.corpus.fingerprint, digest([known, numbers, c.settings.time, c.settings.max_cost]))


# --- a session ---


def try_change(names: Sequence[str], settings: LabSettings, events: Events) -> int:
    """Try a change to a recipe in its lab, show its ledger, or open its locked text; return the exit code.

    names: the recipe's file, and the change: another recipe's file, or settings as KEY=VALUE. Raises SettleError.
    """
    with stoppable("what was measured", events):
        path = Path(names[0]).expanduser()
        lab = _opened_lab(path, events)
        events.emit(WorkStarted(what="runs compare", name=lab.name, path=str(lab.path)))
        with lab.lock():
            session = _Session(Lab(lab.path, lab.plan), settings, events)
            if settings.open:
                return session.open()
            return session.change(names[1:]) if names[1:] else session.show()


def _opened_lab(path: Path, events: Events) -> Lab:
    """Return the lab of a recipe, a new one where there is none. Raises UsageError where the file has changed since."""
    asked = {key: value for key, value in read_recipe(path).items() if key not in UNTOUCHED}
    folder = home() / "labs" / free_name(path.stem, ())
    if (file := folder / "lab.json").exists():
        plan = _read_plan(file)
        if plan.asked != json.loads(json.dumps(asked)):
            fix = "give the change as KEY=VALUE or as a second file; for another lab, give the recipe another name"
            raise UsageError(f"{path} is not the recipe that its lab began with", fix)
        return Lab(folder, plan)
    settings = resolve(TrainSettings, [(str(path), asked)]).value
    settings.check("train")
    if "-" in settings.inputs:
        raise UsageError("standard input cannot be read once for every run", "give a file")
    recipe = settings.to_recipe()
    folder.mkdir(parents=True, exist_ok=True)
    made = planned(recipe, folder / "runs")
    loop = made.plan.loop
    fixed = {"device": made.plan.device, "dtype": made.plan.dtype, "threads": loop.threads}
    if settings.time and not settings.size:
        fixed["size"] = str(made.plan.num_parameters)
    recipe = fixed | recipe
    identity = planned(recipe, folder / "runs").identity
    plan = LabPlan(asked=asked, recipe=recipe, identity=identity, corpus=made.corpus, key=secrets.token_hex(16))
    write_json(file, plan.model_dump(mode="json"))
    events.emit(Say(text=f"a new lab: {folder}"))
    return Lab(folder, plan)


def _read_plan(file: Path) -> LabPlan:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        refuse_newer(values, VERSION, str(file))
        return LabPlan.model_validate(values)
    except (ValueError, ValidationError):
        raise RunError(f"{file} is damaged", "restore it, or delete the folder of the lab") from None


class _Session:
    """One command in a lab."""

    def __init__(self, lab: Lab, settings: LabSettings, events: Events) -> None:
        self.lab, self.settings, self.events = lab, settings, events
        self.record = RunRecord(lab.path / "measured.jsonl")

    # --- a change ---

    def change(self, given: Sequence[str]) -> int:
        """Try a change, or continue with it, and return the exit code of what became of it."""
        recipe, words = changed_recipe(self.lab.best, self.lab.plan.recipe, given), " ".join(given)
        made = self._planned(recipe, words)
        if made.identity == self.lab.identity:
            why = "it makes the same runs as the recipe; a seed or a name changes nothing"
            return self._say(self._entry("judged", -1, change=words, state="discarded", why=why))
        begun = self._begun(recipe, words, made)
        latest = self.lab.judged(begun.number)
        is_open = latest is None or (latest.state == "undecided" and len(latest.gains) < self.settings.pairs)
        if latest is not None and not is_open:
            self.events.emit(Say(text=f"it was tried before, as change {begun.number + 1}"))
            return self._say(latest)
        judged = self._paired(begun)
        self.lab.ledger.add(judged)
        if judged.state == "kept":
            write_atomic(self.lab.path / "best.toml", recipe_text(judged.recipe))
        shutil.rmtree(self.lab.runs, ignore_errors=True)
        return self._say(judged)

    def _planned(self, recipe: JsonObject, words: str) -> PlannedRecipe:
        """Return what the changed recipe comes to. Raises UsageError where it would be judged on another text."""
        recipes = (self.lab.plan.recipe, recipe)
        texts = [{**each.get("data", {}), "vocab_size": None, "inputs": each["inputs"]} for each in recipes]
        if texts[0] != texts[1]:
            raise UsageError(f"{words} changes the text, which judges both sides", "begin a lab with that recipe")
        return planned(recipe, self.lab.runs)

    def _begun(self, recipe: dict[str, Any], words: str, made: PlannedRecipe) -> Entry:
        """Return the entry of a change that was begun before, or begin it: from now on its error is spent."""
        changes = self.lab.ledger.of("begun")
        for entry in changes:
            if (entry.base, entry.identity) == (self.lab.identity, made.identity):
                return entry
        noise = self.lab.noise(self._noise_pairs())
        begun = self._entry(
            "begun",
            len(changes),
            change=words,
            base=self.lab.identity,
            identity=made.identity,
            recipe=recipe,
            noise=(noise.squares, noise.freedom),
        )
        self.lab.ledger.add(begun)
        return begun

    def _noise_pairs(self) -> list[float]:
        """Return the gains of pairs of the first recipe that differ by nothing that matters."""
        recipe = self.lab.plan.recipe
        arms = [self._arm("the recipe", recipe), self._arm("the recipe, hardly changed", recipe, is_shaken=True)]
        seeds = [self.lab.seed("noise", place) for place in range(NOISE_PAIRS)]
        pairs = list(self._pairs(arms, seeds))
        for before, after in pairs:
            if failed := before.failed or after.failed:
                raise RunError(f"the recipe itself fails: {failed}", "begin with one that trains")
        return [_gain(*pair) for pair in pairs]

    def _paired(self, begun: Entry) -> Entry:
        """Measure pairs until the change is kept or discarded, or its budget is spent; return the judgement."""
        lab, settings = self.lab, self.settings
        most_seconds, noise = seconds(settings.budget) if settings.budget else math.inf, Noise(*begun.noise)
        arms = [self._arm("the recipe", lab.best), self._arm("the change", begun.recipe)]
        seeds = [lab.seed(begun.number, place) for place in range(settings.pairs + MOST_FAILED)]
        gains, spent, failed, verdict, why = list[float](), 0.0, 0, "", ""
        for before, after in self._pairs(arms, seeds):
            spent += before.seconds + after.seconds
            if after.failed and not before.failed:
                verdict, why = "discarded", f"a run of it failed, {after.failed}"
                break
            if before.failed:
                failed += 1
                if failed > MOST_FAILED:
                    raise RunError(f"the recipe itself fails: {before.failed}", "begin a lab with one that trains")
                continue
            gains.append(_gain(before, after))
            if found := state(gains, noise, error_of(begun.number), settings.least):
                verdict, why = found, _reason(found, settings.least)
                break
            if len(gains) == settings.pairs or spent * (1 + 1 / len(gains)) > most_seconds:
                break
        if not verdict:
            what = f"{len(gains)} pairs" if len(gains) == settings.pairs else f"a budget of {settings.budget}"
            verdict, why = "undecided", f"{what} could not tell; a larger --pairs or --budget continues"
        values = begun.model_dump() | {"kind": "judged", "time": time.time(), "state": verdict, "why": why}
        return Entry.model_validate(values | {"gains": tuple(gains), "seconds": spent})

    # --- the locked text ---

    def open(self) -> int:
        """Compare the first recipe with the best one on the locked text, by fresh seeds; count it."""
        lab, number = self.lab, self.lab.openings
        if not lab.kept:
            raise UsageError("no change was kept: there is nothing that the locked text could judge", "try one first")
        place = len(lab.ledger.of("opened"))
        arms = [
            self._arm("the first recipe", lab.plan.recipe, "held_out"),
            self._arm("the best", lab.best, "held_out"),
        ]
        seeds = [lab.seed("open", place, pair) for pair in range(self.settings.pairs)]
        pairs = list(self._pairs(arms, seeds))
        for before, after in pairs:
            if failed := before.failed or after.failed:
                raise RunError(f"a run failed: {failed}", "the same command continues with what was measured")
        gains = tuple(_gain(*pair) for pair in pairs)
        lab.ledger.add(self._entry("opened", number, gains=gains, corpus=lab.plan.corpus, identity=lab.identity))
        shutil.rmtree(lab.runs, ignore_errors=True)
        gain = _percent(gain_interval(gains, lab.noise([])))
        self.events.emit(Say(text=f"on text that nothing has chosen by: {_loss_text(gain)}"))
        self.events.emit(Say(text=LOCKED.format(_times(number + 1))))
        result = {"lab": str(lab.path), "gain": gain.to_json(), "pairs": len(gains), "openings": number + 1}
        self.events.emit(ResultReady(result={**result, "kept": [entry.change for entry in lab.kept]}))
        return 0 if gain.low > 0 else NOT_BETTER

    # --- both ---

    def _arm(self, name: str, recipe: JsonObject, side: Side = "selection", is_shaken: bool = False) -> RecipeArm:
        return RecipeArm(name, recipe, self.lab.runs, side, is_shaken, self.events.emit)

    def _pairs(self, arms: Sequence[RecipeArm], seeds: Sequence[int]) -> Iterator[tuple[Measurement, Measurement]]:
        """Yield both runs of one pair after the other, made when they are asked for. Raises SettleError."""
        paces = [ArmPace() for _ in arms]
        lanes = [
            Lane(arm, self.record, pace, seeds, [arm.run_key(seed) for seed in seeds], range(len(seeds)))
            for arm, pace in zip(arms, paces, strict=True)
        ]
        with Runner(lanes, self.events, "runs") as runner:
            for place in range(len(seeds)):
                try:
                    for lane in in_turn(lanes, place):
                        runner.measure(lane, [place])
                except ArmFailed as e:
                    raise e.error from e
                before, after = (lane.value(place) for lane in lanes)
                yield before, after

    def _entry(self, kind: str, number: int, **values: object) -> Entry:
        return Entry.model_validate({"kind": kind, "number": number, "time": time.time(), **values})

    def _say(self, entry: Entry) -> int:
        """Show what became of a change; return its exit code."""
        lab, noise, error = self.lab, Noise(*entry.noise), error_of(max(0, entry.number))
        gain = _percent(gain_interval(entry.gains, noise)) if entry.gains else None
        if gain is not None:
            self.events.emit(Say(text=_loss_text(gain)))
        result = {
            "lab": str(lab.path),
            "change": entry.change,
            "number": entry.number + 1,
            "verdict": entry.state,
            "why": entry.why,
            "gain": gain.to_json() if gain else None,
            "pairs": len(entry.gains),
            "odds": evidence(entry.gains, noise),
            "odds_needed": 1 / error,
            "seconds": entry.seconds,
            "recipe": str(lab.path / "best.toml") if lab.kept else None,
            "openings": lab.openings,
        }
        self.events.emit(ResultReady(result=result))
        return CODES[entry.state]

    def show(self) -> int:
        """Show every change that was tried, and how often the locked text was read."""
        latest = {entry.number: entry for entry in self.lab.ledger.entries if entry.kind != "opened"}
        rows = [_row(entry) for entry in latest.values()]
        columns = ("", "change", "verdict", "change of the loss", "pairs", "time")
        note = LOCKED.format(_times(self.lab.openings))
        self.events.emit(Listing(title=self.lab.name, columns=columns, rows=rows, note=note))
        changes = [entry.model_dump(mode="json", include={"change", "state", "gains"}) for entry in latest.values()]
        known = {"lab": str(self.lab.path), "changes": changes, "openings": self.lab.openings}
        self.events.emit(ResultReady(result=known | {"recipe": self.lab.best}))
        return 0


def changed_recipe(best: JsonObject, first: JsonObject, given: Sequence[str]) -> dict[str, Any]:
    """Return the recipe that a change makes of `best`: settings as KEY=VALUE, or the file of a whole recipe.

    A file is taken over what `first` fixed for all runs, such as the type of its numbers. Raises UsageError.
    """
    if len(given) == 1 and "=" not in given[0]:
        fixed = {key: first[key] for key in ("device", "dtype", "threads", "size") if key in first}
        asked = {key: value for key, value in read_recipe(Path(given[0]).expanduser()).items() if key not in UNTOUCHED}
        asked["inputs"] = absolute_paths(asked.get("inputs") or list(first["inputs"]))
        layers: list[tuple[str, JsonObject]] = [("recipe", fixed), (given[0], asked)]
    else:
        layers = [("recipe", best), *(("asked", _assignment(one)) for one in given)]
    settings = resolve(TrainSettings, layers).value
    settings.check("train")
    recipe = settings.to_recipe()
    return {key: value for key, value in recipe.items() if key not in UNTOUCHED}


def _assignment(given: str) -> JsonObject:
    """Read KEY=VALUE; a value is TOML, or text where it is none. Raises UsageError."""
    key, equals, text = given.partition("=")
    if not equals or not key:
        raise UsageError(f"{given!r} is no change", "give KEY=VALUE, such as optimizer.lr=0.01, or a recipe's file")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    return {key.replace("-", "_"): value}


def _gain(before: Measurement, after: Measurement) -> float:
    return math.log(before.loss / after.loss)


def _percent(gain: Interval) -> Interval:
    """Return the gain as the share of the loss that it takes off."""
    value, low, high = (-math.expm1(-end) if math.isfinite(end) else end for end in gain.ends)
    return Interval(value, low, high)


def _loss_text(gain: Interval) -> str:
    low, high = (f"{-end:+.2%}" if math.isfinite(end) else "unknown" for end in (gain.high, gain.low))
    return f"the loss changes by {-gain.value:+.2%} (95 %: {low} to {high})"


def _reason(found: str, least: float) -> str:
    if found == "kept":
        return "it is shown to be better"
    return f"a gain of {least:.1%} of the loss or more would have shown"


def _times(number: int) -> str:
    return "never read" if not number else "read once" if number == 1 else f"read {number} times"


def _row(entry: Entry) -> list[object]:
    gain = _percent(gain_interval(entry.gains, Noise(*entry.noise))) if entry.gains else None
    text = _loss_text(gain).removeprefix("the loss changes by ") if gain else "–"
    return [entry.number + 1, entry.change, entry.state or "begun", text, len(entry.gains), duration(entry.seconds)]
