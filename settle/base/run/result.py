"""result.json: what a run ended with. Written last, so its presence means that the run is finished."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from settle.base.errors import RunError
from settle.base.files import JsonObject
from settle.base.version import refuse_newer
from settle.base.visible import html_table
from settle.base.words.amounts import UNITS, amount, number

VERSION = 1
ESTIMATED = ("energy", "cost")  # figures that are estimates, actual ones too, where no counter of energy is read
LOSS_OF = {"decision": "decision", "dpo": "pair", "rank": "question", "contrastive": "question"}  # otherwise a token

GATE = {True: "passed: the exported file is the model", False: "FAILED"}
NOT_BETTER = 3  # exit code of a model that is not better than what it was compared with


class Evaluated(BaseModel):
    """The best weights on held-out data: loss and stderr in nats per token; held_out_share: of the text it was.

    averaged: they are an average of the weights until `step`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: int | None = None
    tokens: int | None = None
    loss: float | None = None
    stderr: float | None = None
    bits_per_byte: float | None = None
    held_out_share: float | None = None
    averaged: bool = False


@dataclass(frozen=True)
class Figure:
    """A figure of a forecast; None for an end that is not known."""

    value: float | None
    low: float | None
    high: float | None
    unit: str
    source: str


def figures_of(forecast: JsonObject) -> dict[str, Figure]:
    """Return the figures of a forecast by name, each {"value", "low", "high", "unit"}; the unit follows from the name.

    forecast: as forecast.json, result.json and events have it.
    """
    return {
        name: Figure(
            value=number(item.get("value")),
            low=number(item.get("low")),
            high=number(item.get("high")),
            unit=str(item.get("unit") or UNITS.get(name, "")),
            source=str(item.get("source", "")),
        )
        for name, item in forecast.items()
        if isinstance(item, Mapping)
    }


class ComparisonRecord(dict[str, Any]):
    """How a model did against another one, as in result.json; a notebook shows it as a table."""

    def _repr_html_(self) -> str:
        shown = {"headline": "", "verdict": ""} | {k: v for k, v in self.items() if isinstance(v, str | int | float)}
        return html_table([(key.replace("_", " "), amount(value)) for key, value in shown.items() if value != ""])


class Result(BaseModel):
    """What every run's result has; what a job adds (student, pair, points ...) is kept as it is."""

    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)

    version: int = VERSION
    name: str = ""
    verdict: str
    budget: str | None = None  # what it used up, where it ended by that
    why: str = ""
    evidence: JsonObject | None = None
    rollbacks: Sequence[JsonObject] | None = None
    gain_per_hour: Mapping[str, float | None] | None = None
    best: Evaluated | None = None
    actual: JsonObject = Field({})  # actual, forecast: figures by name
    forecast: JsonObject = Field({})
    proof: Sequence[JsonObject] | None = None
    gate: JsonObject | None = None  # the report of the check of the exported file
    comparison: Annotated[JsonObject, AfterValidator(ComparisonRecord)] | None = None
    system_prompt: str | None = None  # that a tuned model has by default, because every row had it
    audit: JsonObject = Field({})  # what left this machine
    files: JsonObject = Field({})  # what was made

    @property
    def shown_verdict(self) -> str:
        return shown_verdict(self.verdict, self.budget)

    @property
    def headline(self) -> str:
        return str((self.comparison or {}).get("headline") or "")

    @property
    def notes(self) -> list[str]:
        """What else the comparison found that the user should know before using the model."""
        return [str(note) for note in (self.comparison or {}).get("notes") or []]

    @property
    def exit_code(self) -> int:
        """0 done, 1 nothing usable was made, 3 not better than what it was compared with."""
        if self.verdict in ("diverged", "broken"):
            return 1
        return NOT_BETTER if (self.comparison or {}).get("verdict", "better") != "better" else 0

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Why, the best evaluation, the comparison, the gate, the network and the files; "" for what is not known."""
        best, gate = self.best or Evaluated(), self.gate or {}
        loss = f"{best.loss:.4f}" if best.loss is not None else ""
        loss += f" ± {best.stderr:.4f}" if loss and best.stderr is not None and math.isfinite(best.stderr) else ""
        at = f", at step {best.step:,}" if best.step is not None else ""
        return [
            ("why", self.why),
            ("best held-out loss", f"{loss} nats{at}" if loss else ""),
            ("bits per byte", "" if best.bits_per_byte is None else f"{best.bits_per_byte:.4f}"),
            ("against its base", self.headline),
            ("gate", GATE[bool(gate["passed"])] if "passed" in gate else ""),
            ("network", str(self.audit.get("sentence") or "")),
            ("files", ", ".join(self.files)),
        ]

    def to_json(self) -> JsonObject:
        return {key: value for key, value in self.model_dump().items() if value is not None}

    def __repr__(self) -> str:
        return f"<Result {self.name}: {self.shown_verdict}>"

    def _repr_html_(self) -> str:
        """For a notebook: the verdict, and the forecast beside the actual figures."""
        title = f"{self.name} {self.shown_verdict}".strip()
        verdict = html_table([fact for fact in self.facts if fact[1]], title=title)
        rows = []
        for name, figure in figures_of(self.forecast).items():
            values = (figure.value, figure.low, figure.high, self.actual.get(name))
            rows.append([name.replace("_", " "), *(amount(value, figure.unit) for value in values)])
        columns = ("forecast", "expected", "low", "high", "actual")
        return verdict + (html_table(rows, columns) if rows else "")

    def __getitem__(self, key: str) -> object:
        """Return a value as result.json has it."""
        return self.to_json()[key]


def energy_is_counted(forecast: JsonObject) -> bool:
    """Return whether a counter is read for all the energy of the run that this forecast, as in forecast.json, is of.

    Elsewhere the "actual" energy is the estimate that the forecast was made with, times the actual time, and that both
    agree says nothing.
    """
    energy = figures_of(forecast).get("energy")
    return energy is not None and energy.source.startswith("measured")


def parse_result(values: object, path: Path) -> Result:
    """Validate result.json. Raises RunError when a newer settle wrote it, or when it was edited into something else."""
    refuse_newer(values, VERSION, str(path))
    try:
        return Result.model_validate(values)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RunError(f"{path} is damaged: {where}: {first['msg'].lower()}", "restore the file") from None


def loss_unit(objective: object) -> str:
    """Return the unit of a loss, by the name of the objective."""
    return f"nats per {LOSS_OF.get(str(objective), 'token')}"


# --- the tone of a word ---

BUDGETS = ("time", "tokens", "steps", "money", "passes", "budget")  # what a run may have used up

TONES = {
    "running": "live", "interrupted": "warn", "damaged": "bad", "deleted": "bad", "failed": "bad", "settled": "good",
    "learned": "good", "within budget": "good", "overfitting": "warn", "out of budget": "warn", "diverged": "bad",
    "broken": "bad", "✓": "good", "outside": "warn", **{f"{budget} used": "dim" for budget in BUDGETS},
}  # fmt: skip


def shown_verdict(verdict: str, budget: str | None) -> str:
    """Return a verdict for people: a run that took the budget it was given is no warning. budget: what it used up."""
    return f"{budget or 'budget'} used" if verdict == "out of budget" else verdict
