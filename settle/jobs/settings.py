"""What the user may ask of a job. No torch, so that a command line can be made of it at once."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field

from settle.base.amounts import count, num_bytes, seconds, share
from settle.base.choice import Choice, choice
from settle.base.errors import UsageError
from settle.base.python_command import extra_command
from settle.base.settings import Resolved, Settings, read_recipe, resolve
from settle.library.resolve import portable_name
from settle.machine.threads import ThreadSettings
from settle.plan.settings import TrainingSettings, TuningSettings

UNJUDGED = "-unjudged"  # ends the name of a refit
MEMBER, DISTILLED = "-member", "-distilled"  # end the names of the runs that `--members` adds
LAUNCH = ("launch", "hosts", "gpus")  # settings that say where to run, and not what
STUDENT_PASSES = 2.0  # steps of the student of `--members` ÷ those of a member (bench/members.py)
AMOUNTS = {"time": seconds, "tokens": count, "size": count}
# the job of each objective that does not go the usual way: encoders learn from pairs of a question and a passage
TUNING_JOBS = {"rank": "tune_encoder", "contrastive": "tune_encoder", "decision": "tune_decision"}
PACKED = "W4A16"  # matrices of 4 bits in a folder of compressed-tensors
DRAFT_TYPES = ("q8_0", "q4_0", "f16")
A_MODEL = "a run, a model of the store, a folder in Hugging Face's layout, or a .gguf file; or the recipe's"
Goal = Literal["size", "mix", "packed", "speed", "loss", "plan", "unchanged"]


class JobSettings(Settings):
    """What a person may ask of every job that makes a run."""

    models: ClassVar[tuple[str, ...]] = ()  # settings that name a model or a file

    inputs: list[str] = Field([], description="files, folders, - or stdlib")
    name: str | None = Field(None, description="name of the run; from the first input when not given")
    recipe: Path | None = Field(None, description="settings from a TOML file; the command line takes precedence")
    dry: bool = Field(False, description="show the plan and the forecast, run nothing")

    def check(self, job: str) -> None:
        """Raise UsageError for what cannot be started. job: its name, for messages."""
        for name, parse in AMOUNTS.items():
            if amount := getattr(self, name, None):
                parse(amount)  # refused before anything is read
        self._require_model(job)
        if self.inputs:
            return
        if not self.models:
            raise UsageError(f"no input for `settle {job}`", f"give files or folders: `settle {job} ~/notes`")
        what, given = self.models[0], str(getattr(self, self.models[0]))
        if _is_data(Path(given).expanduser()):
            fix = f"name the {what} first: `settle {job} smollm2 {given}`"
            raise UsageError(f"no {what} for `settle {job}`: {given!r} is text or examples", fix)
        raise UsageError(f"no input for `settle {job}`", f"give files after the {what}: `settle {job} {given} ~/notes`")

    def _require_model(self, job: str) -> None:
        """Raise UsageError where the job works on a model, and neither the command nor the recipe names one."""
        if self.models and not getattr(self, self.models[0]):
            what = self.models[0]
            fix = f'name it, `settle {job} smollm2 …`, or in a recipe, {what} = "smollm2", that --recipe gives'
            raise UsageError(f"no {what} for `settle {job}`", fix)

    def usual_name(self) -> str:
        """Return the name of a run that was given none: after the first input."""
        return name_of(self.inputs[0])

    def with_recipe(self) -> Resolved[Self]:
        """Return these settings over those of the recipe, each with its origin.

        Files in the place of the model are inputs where the recipe names the model.
        """
        recipe, asked = read_recipe(self.recipe) if self.recipe else {}, self.model_dump(exclude_unset=True)
        for what in self.models[:1]:
            if recipe.get(what) and asked.get(what) and _is_data(Path(asked[what]).expanduser()):
                asked["inputs"] = [asked.pop(what), *asked.get("inputs", [])]
        return resolve(type(self), [("recipe", recipe), ("asked", asked)])

    def to_recipe(self) -> dict[str, object]:
        """Return what recipe.toml keeps: all that was asked for, with paths that are valid from any folder."""
        recipe: dict[str, object] = self.model_dump(exclude_unset=True, exclude={"recipe", "dry", *LAUNCH}, mode="json")
        recipe["inputs"] = absolute_paths(self.inputs)
        return recipe | {key: portable_name(str(recipe[key])) for key in self.models if recipe.get(key)}


def _is_data(path: Path) -> bool:
    """Return whether a path leads to files to learn from, and to no model."""
    if path.is_dir():
        return not any((path / name).exists() for name in ("config.json", "adapter_config.json", "result.json"))
    return path.is_file() and path.suffix != ".gguf"


def absolute_paths(sources: Iterable[str]) -> list[str]:
    """Paths that are valid from any folder; what is no path stays."""
    paths = {source: Path(source).expanduser().absolute() for source in sources}
    return [str(path) if path.exists() else source for source, path in paths.items()]


def name_of(source: str) -> str:
    """Return a name for what is made from an input or a model."""
    if source in ("-", "stdlib"):
        return "stdin" if source == "-" else source
    return Path(source).expanduser().resolve().stem


class RepeatableSettings(JobSettings):
    """What a person may ask of a job that can be run with several seeds, and on several hosts."""

    launch: Literal["torchrun", "slurm", "kubernetes", "skypilot"] | None = Field(
        None, description="print the script that starts the run on several hosts, with the forecast, and run nothing"
    )
    hosts: int = Field(1, ge=1, le=10_000, description="with --launch: number of hosts")
    gpus: int | None = Field(
        None, ge=1, le=64, description="with --launch: number of GPUs of each host; one process on the CPU if not given"
    )
    seeds: int = Field(
        1, ge=1, le=100, description="number of runs with consecutive seeds, from `seed` on; reports their spread"
    )


class TrainSettings(TrainingSettings, RepeatableSettings):
    """What a person may ask of `settle train`."""

    refit: bool = Field(
        False,
        description="after the verdict, train a second model with the same recipe and steps on all of the text; "
        "nothing judges it, so its name ends in -unjudged; a time budget is for both",
    )
    members: int | None = Field(
        None,
        ge=2,
        le=16,
        description="after the verdict, train models with other seeds until there are so many, and distil all of them "
        "into one of the same shape, NAME-distilled; a time budget is for all",
    )

    def check(self, job: str) -> None:
        super().check(job)
        others = {"--refit": self.refit, "--seeds": self.seeds > 1, "--launch": self.launch is not None}
        for flag, is_given in others.items():
            if self.members and is_given:
                raise UsageError(f"--members does not go with {flag}", "leave one of them out")

    def followers(self, name: str) -> list[str]:
        """Return the names of the runs that follow the judged one of that name."""
        if not self.members:
            return [f"{name}{UNJUDGED}"] if self.refit else []
        return [*(f"{name}{MEMBER}{place}" for place in range(2, self.members + 1)), f"{name}{DISTILLED}"]

    @property
    def work(self) -> float:
        """How many times the work of the judged run all of the runs are."""
        return self.members + student_steps(self.members) if self.members else 2 if self.refit else 1


def student_steps(members: int) -> float:
    """Return what training the student of so many members costs, in training runs of one of them.

    Each of them reads every batch, which takes a third of a step.
    """
    return STUDENT_PASSES * (1 + members / 3)


class FollowerSettings(TrainSettings):
    """What a run that follows a judged one is made of."""

    of: str = Field(description="folder of the run that was judged")
    place: int = Field(1, description="with --members: of the member, the judged run being the first; the student's")


class LabSettings(Settings):
    """How a change to a recipe is tried."""

    pairs: int = Field(6, ge=3, le=100, description="most times that a change to a recipe gets a pair of runs")
    budget: str | None = Field(None, description="most time that a change to a recipe gets, such as 30m")
    least: float = Field(
        0.005, gt=0, lt=1, description="smallest gain that matters, as a fraction of the loss: less is discarded"
    )
    open: bool = Field(False, description="read the locked text: the first recipe against the best, counted")


class TuneSettings(TuningSettings, RepeatableSettings):
    """What a person may ask of `settle tune`."""

    models: ClassVar[tuple[str, ...]] = ("model",)

    model: str = Field("", description=A_MODEL)
    inputs: list[str] = Field([], description="files or folders of examples, or - for stdin")


class DistillSettings(TuningSettings, JobSettings):
    """What a person may ask of `settle distill`."""

    models: ClassVar[tuple[str, ...]] = ("teacher", "student", "into")

    teacher: str = Field("", description=A_MODEL)
    inputs: list[str] = Field([], description="files or folders of texts or examples, or - for stdin")
    objective: Choice = choice(
        "train/objectives", default="distill", only=("distill",), description="what the student learns to minimize"
    )
    adapter: Choice = choice(
        "model/adapters",
        default="full",
        extra={"full": "train every weight"},
        description="what is trained: every weight of the student (full), or an adapter beside it",
    )
    student: str | None = Field(None, description="student model; must share the teacher's tokenizer")
    into: Path | None = Field(
        None, description="the student's shape: TOML with fields of config.json, such as num_hidden_layers = 12"
    )
    drop_layers: int | None = Field(None, ge=1, description="number of blocks to remove from the teacher")
    width: float | None = Field(None, gt=0, lt=1, description="share of the teacher's width to keep")
    fresh: bool = Field(False, description="with --into: start from random weights")
    answers: bool | None = Field(
        None, description="learn the teacher's own answers to the prompts instead of those in the examples"
    )
    answer_tokens: int = Field(256, gt=0, description="longest answer of the teacher, in tokens")
    cache: bool = Field(
        False, description="read all rows with the teacher once, in llama.cpp, and record its distributions"
    )
    draft: bool = Field(False, description="make a draft model for speculative decoding, and measure the pair")
    draft_type: str = Field("q8_0", description="type of the draft's file: q8_0, q4_0 or f16")

    def check(self, job: str) -> None:
        super().check(job)
        ways = {
            "--student": self.student,
            "--into": self.into,
            "--drop-layers": self.drop_layers,
            "--width": self.width,
        }
        given = [name for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} each name a student", "give one of them")
        if not given and not self.draft:
            raise UsageError("there is no student", "give --drop-layers, --width, --into, --student or --draft")
        if self.fresh and self.into is None:
            raise UsageError("--fresh needs a shape", "give it with --into")
        if self.draft and self.adapter.name != "full":
            raise UsageError("a draft is a whole model, not an adapter", "leave --adapter out")
        if self.draft_type not in DRAFT_TYPES:
            raise UsageError(f"--draft-type {self.draft_type} is unknown", f"give one of {', '.join(DRAFT_TYPES)}")


@dataclass(frozen=True)
class Budget:
    """What decides. amount: bytes, tokens per second, or a share of the loss, by the goal; mix: llama.cpp's name."""

    goal: Goal
    amount: float = 0.0
    mix: str = ""


class ShrinkOptions(ThreadSettings):
    """What a person may ask when a model is made smaller."""

    model: str = Field("", description=A_MODEL)
    to: str | None = Field(
        None, description="a size such as 400MB; a type of llama.cpp: Q4_K_M, Q8_0 …; or W4A16, a folder for vLLM"
    )
    speed: float | None = Field(None, gt=0, description="tokens per second that the model must write on this machine")
    lose: str | None = Field(None, description="how much the loss on held-out text may rise, such as 1%")
    plan: bool = Field(False, description="predict, then measure, every option; write no model")
    vocabulary: bool = Field(False, description="keep only the tokens that INPUTS need; no weight is rounded")
    quantizer: Choice = choice("shrink/quantizers", default="auto", description="what chooses the type of each tensor")
    calibration: list[str] = Field([], description="other files to measure importance on")
    imatrix: Path | None = Field(None, description="importance matrix of llama.cpp, instead of measuring one")
    requantize: bool = Field(False, description="accept a model that is quantized already")
    compare: bool = Field(True, description="compare both models on the held-out examples at the end")
    score: str | None = Field(
        None,
        description="metric: NAME, NAME:VALUE such as regex:PATTERN, or a Python file; from the data if not given",
        json_schema_extra={"parts": "evaluate/tasks"},
    )

    @property
    def is_packed(self) -> bool:
        """Return whether a folder of compressed-tensors is asked for."""
        return (self.to or "").upper() == PACKED

    def budget(self) -> Budget:
        """Return the budget. Raises UsageError unless exactly one was given, or none with `vocabulary`."""
        from settle.shrink.types.mixes import MIXES  # loads numpy

        options = [name for name in ("to", "speed", "lose", "plan") if getattr(self, name)]
        if not options and self.vocabulary:
            return Budget("unchanged")
        if len(options) != 1:
            names = ", ".join(f"--{name}" for name in options) or "none"
            fix = "give --to 400MB, --to Q4_K_M, --speed 40, --lose 1% or --plan"
            raise UsageError(f"one budget decides, and {names} were given", fix)
        if self.is_packed:
            return Budget("packed")
        if self.to is not None and self.to.upper() in MIXES:
            return Budget("mix", mix=self.to.upper())
        if self.to is not None and self.to[:1].isalpha():
            fix = f"give a size such as 400MB, or one of: {', '.join(MIXES)}, {PACKED}"
            raise UsageError(f"there is no type {self.to!r}", fix)
        if self.to is not None:
            return Budget("size", num_bytes(self.to))
        if self.lose is not None:
            return Budget("loss", share(self.lose))
        return Budget("plan") if self.plan else Budget("speed", self.speed or 0.0)


class ShrinkSettings(ShrinkOptions, JobSettings):
    """What a person may ask of `settle shrink`."""

    models: ClassVar[tuple[str, ...]] = ("model", "imatrix")

    inputs: list[str] = Field([], description="files or folders of text or examples; settle's own text if not given")
    name: str | None = Field(None, description="name of the run; from the model when not given")

    def check(self, job: str) -> None:
        self._require_model(job)
        if self.vocabulary and not self.inputs:
            raise UsageError("your text decides which tokens are needed", "give it: `settle shrink MODEL FILES …`")
        self.budget()
        if find_spec("llama_cpp_py_sync") is None:
            raise UsageError("shrinking needs llama-cpp-py-sync", extra_command("shrink"))

    def usual_name(self) -> str:
        return f"{name_of(self.model)}-small"

    def to_recipe(self) -> dict[str, object]:
        recipe = super().to_recipe()
        return recipe | ({"calibration": absolute_paths(self.calibration)} if self.calibration else {})


class IndexSettings(ThreadSettings):
    """Which folders become which collection, with which parts, and what is done afterwards."""

    paths: list[str] = Field([], description="folders and files, or the name of a collection")
    name: str | None = Field(None, description="name of the collection; made from the folder's name if not given")
    watch: bool = Field(False, description="stay, and index changes as soon as they happen; Ctrl-C ends it")
    anew: bool = Field(
        False, description="rebuild from scratch; the old index keeps answering until the new one is ready"
    )
    status: bool = Field(
        False, description="index nothing; list what could not be read, and how many files changed since"
    )
    without: list[str] = Field([], description="stop following this folder or file")
    delete: bool = Field(False, description="delete the collection; the documents stay where they are")
    check: bool = Field(
        False, description="evaluate retrieval and refusals with questions generated from the documents"
    )
    questions: int = Field(300, gt=0, description="number of questions that --check asks")
    model: str | None = Field(
        None, description="writes some of --check's questions and answers some, to check citations; none if not given"
    )
    embedder: Choice = choice(
        "retrieve/index/embedders", description="what turns passages into vectors; minilm for a new collection"
    )
    chunker: Choice = choice(
        "retrieve/index/chunkers", description="what cuts documents into passages; structure for a new collection"
    )
    store: Choice = choice("retrieve/index/stores", description="what stores vectors; lancedb for a new collection")


class RowsSettings(ThreadSettings):
    """Which documents become how many examples, who asks, and what is left out."""

    paths: list[str] = Field([], description="folders and files, or the name of a collection")
    out: Path = Field(Path("rows.jsonl"), description="write the rows to this file; the card and what failed beside it")
    count: int = Field(200, gt=0, le=100_000, description="rows that are wanted, twins not counted")
    model: str | None = Field(
        None, description="writes questions about sentences that no rule fits; rules alone if not given"
    )
    base: str | None = Field(None, description="leave out what this model answers already, without the documents")
    held_out: Path | None = Field(
        None, description="leave out rows that are in this file of questions kept for judging"
    )
    twins: bool = Field(
        False, description="add rows with their text, and twins whose text was robbed of the answer and does not say"
    )
    least: float = Field(
        0.5, gt=0, lt=1, description="probability of an answer, by the judge, as a share of 1, from which a row is kept"
    )
    seed: int = Field(0, ge=0, description="same seed and documents, same rows")


class ChooseSettings(ThreadSettings):
    """The examples, what they may be answered with, and how the answers are judged."""

    examples: Path = Field(
        description="rows of a question and its wanted answer, as `settle tune` reads them; with --ask a choice's name"
    )
    docs: Path | None = Field(None, description="folder of documents that may hold the answers")
    model: str | None = Field(None, description="model that answers: a run, a model of the store, or a .gguf file")
    ask: str | None = Field(None, description="answer this in the way that a finished choice took")
    name: str | None = Field(None, description="name of what is kept; made from the file's name if not given")
    score: str | None = Field(
        None,
        description="metric: NAME, NAME:VALUE such as regex:PATTERN, or a Python file; from the data if not given",
        json_schema_extra={"parts": "evaluate/tasks"},
    )
    margin: float = Field(
        0.02, ge=0, lt=1, description="a cheaper way may score this much less than the best, as a share of 1"
    )
    test_share: float = Field(
        0.4, gt=0, lt=1, description="share of the examples that judges, locked until everything is built"
    )
    max_tokens: int | None = Field(
        None, gt=0, description="longest answer, in tokens; half more than nearly all wanted answers if not given"
    )
    epochs: float = Field(8.0, gt=0, description="times that the model sees every example when it is tuned")
    every: bool = Field(False, description="build and measure every way, also those that the triage rules out")
    dry: bool = Field(False, description="show what the examples can tell and how long it takes; measure nothing")
    seed: int = Field(0, ge=0, description="seed of the split, of the chosen examples and of the tuning")


class PickSettings(ThreadSettings):
    """What the model is for, what it must be able to do, and which models to choose from."""

    task: str = Field("", description="what the model is for, in words: coding, JSON, tools, mails in German …")
    prompts: Path | None = Field(
        None, description="prompts as people will ask them, with the wanted answers where there are any"
    )
    models: list[str] = Field(
        [], description="choose among these; those on this machine and in the catalogue if not given"
    )
    context: str | None = Field(
        None, description="tokens of a prompt and its answer together that the model must take, such as 8k"
    )
    speed: float | None = Field(None, gt=0, description="tokens per second that an answer must have at least")
    score: str | None = Field(
        None,
        description="metric: NAME, NAME:VALUE such as regex:PATTERN, or a Python file; from the data if not given",
        json_schema_extra={"parts": "evaluate/tasks"},
    )
    limit: int = Field(60, gt=0, description="rows of prompts that are asked at most")
    max_tokens: int | None = Field(
        None, gt=0, description="longest answer, in tokens; half more than nearly all wanted answers if not given"
    )
    commercial: bool = Field(False, description="leave out models whose licence forbids commercial use")
    yes: bool = Field(False, description="download what would be compared without asking")
    ledger: bool = Field(False, description="show what was predicted on this machine beside what was measured")
