"""result.json: what a run ended with. Written last, so its presence means that the run is finished."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from settle.base.errors import RunError
from settle.base.version import refuse_newer

VERSION = 1
ESTIMATED = ("energy", "cost")  # figures that are estimates, actual ones too, where no counter of energy is read
LOSS_OF = {"decision": "decision", "dpo": "pair", "rank": "question", "contrastive": "question"}  # otherwise a token


class Evaluated(BaseModel):
    """The best weights on held-out data: loss and stderr in nats per token; held_out_share: of the text it was."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: int | None = None
    tokens: int | None = None
    loss: float | None = None
    stderr: float | None = None
    bits_per_byte: float | None = None
    held_out_share: float | None = None


class Result(BaseModel):
    """What every run's result has; what a job adds (student, pair, points ...) is kept as it is.

    forecast and actual: figures by name; gate: the report of the check of the exported file; files: what was made;
    audit: what left this machine; system_prompt: of a tuned model, the one that it has by default because every row
    had it.
    """

    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)

    version: int = VERSION
    name: str = ""
    verdict: str
    why: str = ""
    best: Evaluated | None = None
    actual: Mapping[str, object] = Field({})
    forecast: Mapping[str, object] = Field({})
    proof: Sequence[Mapping[str, object]] | None = None
    gate: Mapping[str, object] | None = None
    comparison: Mapping[str, object] | None = None
    system_prompt: str | None = None
    audit: Mapping[str, object] = Field({})
    files: Mapping[str, object] = Field({})

    @property
    def headline(self) -> str:
        """The comparison in one sentence; empty when nothing was compared."""
        return str((self.comparison or {}).get("headline") or "")

    @property
    def exit_code(self) -> int:
        """0 done, 1 nothing usable was made, 3 not better than what it was compared with."""
        if self.verdict in ("diverged", "broken"):
            return 1
        return 3 if (self.comparison or {}).get("verdict", "better") != "better" else 0

    def to_json(self) -> dict[str, object]:
        return {key: value for key, value in self.model_dump().items() if value is not None}

    def __getitem__(self, key: str) -> object:
        """A value as result.json has it."""
        return self.to_json()[key]


def energy_is_counted(forecast: Mapping[str, object]) -> bool:
    """Whether a counter is read for all the energy of the run that this forecast, as in forecast.json, is of.

    Elsewhere the "actual" energy is the estimate that the forecast was made with, times the actual time, and that both
    agree says nothing.
    """
    energy = forecast.get("energy")
    return isinstance(energy, Mapping) and str(energy.get("source", "")).startswith("measured")


def parse_result(values: object, path: Path) -> Result:
    """Raises RunError when a newer settle wrote the file, or when it was edited into something else."""
    refuse_newer(values, VERSION, str(path))
    try:
        return Result.model_validate(values)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RunError(f"{path} is damaged: {where}: {first['msg'].lower()}", "restore the file") from None


def loss_unit(objective: object) -> str:
    """What a loss is counted in, by the name of the objective."""
    return f"nats per {LOSS_OF.get(str(objective), 'token')}"
