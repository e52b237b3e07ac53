"""What work reports: one frozen model a kind of event. `event_log.py` writes, reads and passes them on.

A line of `events.jsonl` is the dump of one: `{"time": epoch seconds, "kind": …, …}`. Scripts read it: only add fields.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from settle.base.files import JsonObject
from settle.base.version import __version__

VERSION = 1  # of the lines in events.jsonl; a reader refuses a newer one


class BaseEvent(BaseModel):
    """What every event has: when it happened, in epoch seconds."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True, ser_json_inf_nan="strings")

    time: float = Field(default_factory=time.time)


class Opened(BaseEvent):
    """A session began to write the file."""

    kind: Literal["opened"] = "opened"
    version: int = VERSION
    settle: str = __version__


class RunStarted(BaseEvent):
    """A run has its folder."""

    kind: Literal["run"] = "run"
    name: str
    path: str


class WorkStarted(BaseEvent):
    """The work of a command that makes no run has begun."""

    kind: Literal["work"] = "work"
    what: str  # the command's name
    name: str
    path: str = ""  # its folder, where it has one from the start


class Say(BaseEvent):
    """A sentence for the user. is_detail: a terminal shows it with --verbose only."""

    kind: Literal["say"] = "say"
    text: str
    is_detail: bool = False


class Warn(BaseEvent):
    """A sentence about something that is not as it should be."""

    kind: Literal["warn"] = "warn"
    text: str


class UndeclaredConnection(BaseEvent):
    """A connection beyond this machine that the command had not declared."""

    kind: Literal["undeclared"] = "undeclared"
    pid: int
    call: str
    address: str
    port: int | None = None
    host: str = ""  # the name that was asked for, where it is known
    prevented: bool = False  # there was no network to reach it


class AnswerText(BaseEvent):
    """A piece of what was asked for: the text that stdout carries."""

    kind: Literal["answer"] = "answer"
    text: str


class ResultReady(BaseEvent):
    """What a command returns: what `--json` prints."""

    kind: Literal["result"] = "result"
    result: JsonObject


class Progress(BaseEvent):
    """How far a piece of work is."""

    kind: Literal["progress"] = "progress"
    what: str
    done: float
    total: float | None  # None when not known
    unit: str = ""  # "bytes", "s" and "J" are scaled, others counted
    detail: str = ""
    seconds_left: float | None = None  # where it is known better than by the pace so far


class Listing(BaseEvent):
    """A list: cells are text, numbers, None or {"value", "unit"}."""

    kind: Literal["table"] = "table"
    title: str = ""
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""


class ForecastComparison(BaseEvent):
    """A forecast beside what was actual; both by name."""

    kind: Literal["comparison"] = "comparison"
    forecast: JsonObject
    actual: JsonObject | None = None


class PlanReady(BaseEvent):
    """Every value that a run uses, with its origin and reason by dotted key. full: show defaults too."""

    kind: Literal["plan"] = "plan"
    values: JsonObject = {}
    origin: Mapping[str, str] = {}
    why: Mapping[str, str] = {}
    full: bool = True


class ForecastReady(BaseEvent):
    """What a run is expected to need and reach: name → {"value", "low", "high", "unit"}."""

    kind: Literal["forecast"] = "forecast"
    forecast: JsonObject = {}
    phases: Mapping[str, float] = {}  # planned seconds by the name of the stage


class LossForecast(BaseEvent):
    """The held-out loss that the run is expected to end with, in nats per token, re-estimated after `tokens` of it."""

    kind: Literal["loss_forecast"] = "loss_forecast"
    step: int
    tokens: int
    end_tokens: int  # of the whole run
    loss: float
    low: float  # low, high: of its 80 % interval
    high: float


class PhaseStarted(BaseEvent):
    """A stage of a run begins. elapsed: seconds of the run so far; left: until its end, None when not known."""

    kind: Literal["phase"] = "phase"
    phase: str
    elapsed: float
    left: float | None = None


class Check(BaseEvent):
    """A check that passed or failed."""

    check: str
    passed: bool
    detail: str = ""


class ProofCheck(Check):
    """A check of the recipe before its first step."""

    kind: Literal["proof"] = "proof"


class GateCheck(Check):
    """A check of an exported file against the live model."""

    kind: Literal["gate"] = "gate"


class Step(BaseEvent):
    """One optimizer step. loss in nats per token; it may be no finite number."""

    kind: Literal["step"] = "step"
    step: int
    tokens: int
    loss: float
    lr: float = 0.0
    grad_norm: float = 0.0
    tokens_per_second: float = 0.0


class Eval(BaseEvent):
    """An evaluation on held-out data, in nats per token."""

    kind: Literal["eval"] = "eval"
    step: int
    tokens: int
    loss: float
    stderr: float = math.nan
    bits_per_byte: float | None = None
    whole: bool = False  # of the best weights, at the end, on `held_out_share` of the held-out text
    held_out_share: float | None = None


class Sample(BaseEvent):
    """What the model makes of the user's prompt. step: of the weights; moment: "start", "middle" or "end"."""

    kind: Literal["sample"] = "sample"
    step: int
    moment: str
    prompt: str
    text: str


class Usage(BaseEvent):
    """What the training process holds, in bytes, and draws since the event before."""

    kind: Literal["usage"] = "usage"
    step: int
    tokens: int
    memory: int
    watts: float | None = None  # None where not known
    others: float | None = None  # share of the processor that other programs took since then


class SettledEvidence(BaseEvent):
    """What the evaluations say. gain, low, high: improvement for 10 % more tokens, as fractions of the loss."""

    kind: Literal["settled"] = "settled"
    step: int
    tolerance: float
    state: str
    why: str = ""
    gain: float = math.nan
    low: float = math.nan
    high: float = math.nan
    evidence: JsonObject = {}


class DecayStarted(BaseEvent):
    """From `step` on the learning rate falls, to zero at step `until`.

    weights_of: the step whose weights were taken up again, where the held-out loss has risen since.
    """

    kind: Literal["decay"] = "decay"
    step: int
    until: int
    why: str
    weights_of: int | None = None


class CheckpointSaved(BaseEvent):
    """A checkpoint was saved."""

    kind: Literal["checkpoint"] = "checkpoint"
    step: int


class Rollback(BaseEvent):
    """A step went wrong: the run went back to `to_step` and leaves out the batches that did it."""

    kind: Literal["rollback"] = "rollback"
    step: int
    loss: float
    grad_norm: float = math.nan
    to_step: int
    batches: Sequence[JsonObject] = ()


class OutOfMemory(BaseEvent):
    """The end of a run that could not get more memory."""

    kind: Literal["out_of_memory"] = "out_of_memory"
    held: int  # bytes that it had
    missing: int = 0  # bytes that it asked for, 0 where not known


class RunFailed(BaseEvent):
    """The run ended with an error. fix: what the user can do."""

    kind: Literal["failed"] = "failed"
    what: str
    fix: str = ""


class Resumed(BaseEvent):
    """A session continues at `step`. until: last step of the decay, when it has begun; seconds: of earlier sessions."""

    kind: Literal["resumed"] = "resumed"
    step: int
    until: int | None = None
    most_steps: int | None = None
    by_clock: bool = False
    seconds: float = 0.0


class LayoutUse(BaseModel):
    """The layout of a file's rows."""

    layout: str
    columns: Mapping[str, str] = {}  # what a column is used for → its name
    labels: str = ""  # a column that is not used and seems to hold labels


class ReasonCount(BaseModel):
    """How often a reason was given in a ledger, and the first places, each {"where": "file:row"}."""

    count: int
    examples: Sequence[Mapping[str, str]] = ()


class LedgerSummary(BaseEvent):
    """What became of the data, as in their ledger: by reason, what was left out, repaired, and not read."""

    train: Mapping[str, int]
    held_out: Mapping[str, int]
    dropped: Mapping[str, ReasonCount]
    mended: Mapping[str, ReasonCount]
    skipped: Mapping[str, ReasonCount]
    selection: Mapping[str, int] = {}
    found: Mapping[str, int] = {}  # by kind, how many secrets the text has
    found_at: Mapping[str, Sequence[str]] = {}  # where the first are
    omissions: Mapping[str, Sequence[str]] = {}  # by file, what was not read


class TextSummary(LedgerSummary):
    """What became of text to train on."""

    kind: Literal["text"] = "text"
    read: int


class RowSummary(LedgerSummary):
    """What became of examples, and how they were understood. layouts: by file; system_prompt: that of every row."""

    kind: Literal["rows"] = "rows"
    system_prompt: str = ""
    layouts: Mapping[str, LayoutUse]
    supervise: str
    lengths: Mapping[str, int | float]
    too_long: Mapping[str, int | float]
    notes: Sequence[str] = ()


class PreviewRow(BaseModel):
    """One example. pieces: (text, whether the model learns it)."""

    origin: str
    part: str | None = None
    num_tokens: int
    num_supervised: int
    pieces: Sequence[tuple[str, bool]]


class RowPreviews(BaseEvent):
    """Some examples as the model learns from them."""

    kind: Literal["preview"] = "preview"
    rows: Sequence[PreviewRow]


class AnswerChange(BaseModel):
    """A row that two models answer differently. gain: the score of the tuned model minus that of its base."""

    number: int
    gain: float
    question: str
    reference: str
    base: str
    tuned: str


class AnswerChanges(BaseEvent):
    """The answers that changed most between two models. run: the run that keeps them; "" where none does."""

    kind: Literal["changed"] = "changed"
    base: str
    tuned: str
    rows: Sequence[AnswerChange]
    run: str = ""


Event = Annotated[
    Opened | RunStarted | WorkStarted | Say | Warn | UndeclaredConnection | AnswerText | ResultReady | Progress |
    Listing | ForecastComparison | PlanReady | ForecastReady | LossForecast | PhaseStarted | ProofCheck | GateCheck |
    Step | Eval | Sample | Usage | SettledEvidence | DecayStarted | CheckpointSaved | Rollback | OutOfMemory |
    RunFailed | Resumed | TextSummary | RowSummary | RowPreviews | AnswerChanges,
    Field(discriminator="kind"),
]  # fmt: skip
