"""verdict.json, the promotion gate's file: what a model was compared with, on which rows, and what came of it.

It lies beside the model and keeps the score of every row, so that anyone can compute the verdict again, and with the
rows and both models ask them again (`settle eval --verify`). `VerdictFile.model_json_schema()` is
docs/verdict.schema.json.
"""

import datetime
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from settle.base.errors import FormatError
from settle.base.files import JsonObject, parse_json, write_json
from settle.base.statistics import LEVEL, NO_DIFFERENT, RESAMPLES, TOO_FEW, PairedTest, holm, in_order, paired_test
from settle.base.version import __version__
from settle.model.source import Source

NAME = "verdict.json"
SEED = 0  # of the resampling
METHOD = "both models answer the same rows; their scores' differences, families of rows resampled whole"
READ = "both models read the same rows; their scores' differences, families of rows resampled whole"
FIX = "restore it; tuning, distilling or shrinking writes it"
TOLERANCE = 1e-9  # of figures that are computed again
Verdict = Literal["better", "worse", "no different", "too few rows to tell"]
Goal = Literal["better", "not worse"]
SHA256 = "^[0-9a-f]{64}$"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ScoredRows(_Strict):
    """The rows that a verdict rests on, in the order in which they were asked."""

    sha256: str = Field(description="of what was asked and the wanted answers", pattern=SHA256)
    score: str | None = Field(None, description="metric that --score named; the one that suits the rows if null")
    max_tokens: int | None = Field(None, description="longest answer, in tokens")
    numbers: Sequence[int] = Field(description="places of the rows among those given, from 1")
    families: Sequence[int] = Field(description="the same number for rows that are alike")
    base: Sequence[float] = Field(description="score of each row, of the base")
    tuned: Sequence[float] = Field(description="score of each row, of the candidate")
    margins: Sequence[float] | None = Field(None, description="reward margin of each pair of a preference, in nats")
    baselines: tuple[Sequence[float], Sequence[float]] | None = Field(
        None, description="scores of the majority class and of naive Bayes, which judge a decision model too"
    )

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        columns = [self.numbers, self.families, self.base, self.tuned, self.margins or self.base]
        columns += self.baselines or ()
        if len({len(column) for column in columns}) != 1 or not self.numbers:
            raise ValueError("the rows' numbers, families and scores are not of one length")
        return self

    def tests(self, seed: int, resamples: int) -> list[PairedTest]:
        """Return the tests that decide: of the scores, then of the reward margins or against the baselines."""
        if self.baselines:
            sides = (self.base, *self.baselines)
            zero, majority, simple = (paired_test(side, self.tuned, self.families, seed, resamples) for side in sides)
            return [*holm([zero, majority]), simple]
        pairs = [(self.base, self.tuned), *([([0.0] * len(self.margins), self.margins)] if self.margins else [])]
        return in_order([paired_test(*pair, self.families, seed, resamples) for pair in pairs])


class Files(_Strict):
    """A model's file by its hash, so that it can be told from any other."""

    name: str
    sha256: str = Field(pattern=SHA256, description="of the file, or of the names and hashes of a folder's")

    @classmethod
    def of(cls, source: Source) -> Self:
        return cls(name=source.name, sha256=source.sha256)


class Figures(_Strict):
    """A paired test: the candidate's mean score less the base's."""

    base: float
    tuned: float
    difference: float
    low: float = Field(description="lower end of the 95 % interval")
    high: float = Field(description="upper end of the 95 % interval")
    p_value: float
    rows: int
    families: int

    @classmethod
    def of(cls, test: PairedTest) -> Self:
        return cls.model_validate({name: test.to_json()[name] for name in cls.model_fields})


class VerdictFile(_Strict):
    """A comparison as verdict.json keeps it."""

    version: Literal[1] = 1
    settle: str = Field(description="version that made it")
    made: str = Field(description="when, in ISO 8601")
    goal: Goal = Field(description="what the candidate has to be: a tuned one better, a shrunk one not worse")
    verdict: Verdict
    headline: str
    candidate: Files
    base: Files
    measure: str = Field(description="what a score is")
    method: str = METHOD
    level: float = Field(LEVEL, description="confidence of the intervals")
    seed: int = Field(SEED, description="number that the resampling begins with")
    resamples: int = Field(RESAMPLES, le=10 * RESAMPLES, description="times the families are drawn again")
    score: Figures
    margin: Figures | None = None
    forgetting: JsonObject | None = None
    instructions: JsonObject | None = None
    judged_before: int = Field(0, description="other runs that were judged on the same rows")
    rows: ScoredRows

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read verdict.json. Raises FormatError for one that is missing or not what its schema says."""
        try:
            return cls.model_validate(parse_json(path.read_text(encoding="utf-8")))
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(map(str, first["loc"])) or "it"
            raise FormatError(f"{path}: {where}: {first['msg']}", FIX) from None
        except FileNotFoundError:
            raise FormatError(
                f"there is no {NAME} in {path.parent}",
                "tuning, distilling and shrinking write it, once they have compared",
            ) from None
        except (OSError, ValueError) as e:
            raise FormatError(f"{path} cannot be read: {e}", FIX) from None

    @property
    def passes(self) -> bool:
        """Whether the candidate is what it has to be; too few rows show nothing."""
        return self.verdict == "better" or (self.goal == "not worse" and self.verdict == NO_DIFFERENT)

    @property
    def can_be_asked(self) -> bool:
        """Whether its rows can be asked again: others were read while training, by a model that is in no file."""
        return self.method != READ and self.rows.margins is None

    def unfounded(self) -> list[str]:
        """Return what does not follow from the scores of its rows, in words; empty where all does."""
        tests = self.rows.tests(self.seed, self.resamples)
        now = [Figures.of(test) for test in (tests[:1] if self.rows.baselines else tests)]
        recorded = [figures for figures in (self.score, self.margin) if figures is not None]
        if len(now) != len(recorded):
            return ["margin"]
        verdict = decided_against_baselines(tests) if self.rows.baselines else decided(tests)
        return ["verdict"] * (verdict != self.verdict) + [
            name
            for figures, found in zip(recorded, now, strict=True)
            for name, value in found
            if abs(getattr(figures, name) - value) > TOLERANCE * max(1.0, abs(value))
        ]


def decided(tests: Sequence[PairedTest]) -> str:
    """Return the verdict of the tests that decide: of the score, and of the reward margin of preferences.

    The margin decides where the score shows no difference, and where both do not contradict each other.
    """
    score, *margins = tests
    if score.is_shown or not (margins and margins[0].is_shown):
        return score.verdict
    agree = score.difference.value * margins[0].difference.value >= 0
    return margins[0].verdict if agree else NO_DIFFERENT


def decided_against_baselines(tests: Sequence[PairedTest]) -> str:
    """Return the verdict of a decision model's tests: against its base, the majority class and naive Bayes.

    It is better only where it is better than the first two. Nor may it be shown to be worse than naive Bayes: what a
    few lines on the words do better decides nothing.
    """
    *needed, simple = tests
    verdicts = {test.verdict for test in needed} | ({"worse"} if simple.verdict == "worse" else set())
    return next((word for word in ("worse", TOO_FEW, NO_DIFFERENT) if word in verdicts), "better")


def digest(asked: Iterable[object]) -> str:
    """Return the sha256 of what was asked, in order, as JSON lines."""
    lines = (json.dumps(one, ensure_ascii=False, sort_keys=True, default=str) for one in asked)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_verdict(folder: Path, values: JsonObject, tests: Sequence[PairedTest], base: Files, candidate: Files) -> Path:
    """Write verdict.json into a folder, and return its path.

    values: goal, verdict, headline, measure, rows and what else was found; tests: those that decide.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    figures = zip(("score", "margin"), map(Figures.of, tests), strict=False)
    found = {"settle": __version__, "made": now, "base": base, "candidate": candidate, **dict(figures), **values}
    write_json(folder / NAME, VerdictFile.model_validate(found).model_dump(mode="json"))
    return folder / NAME


def write_read_verdict(
    folder: Path,
    found: JsonObject,
    scores: tuple[Sequence[float], Sequence[float]],
    families: Sequence[int],
    read: Iterable[object],
    files: tuple[Files, Files],
    baselines: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Path:
    """Write verdict.json of a comparison on rows that both models read, and return its path.

    found: headline and measure; scores: of the base and of the candidate, row by row; read: what was read, for its
    hash; files: of the base and of the candidate; baselines: of a decision model, scores as in `ScoredRows`.
    """
    rows = ScoredRows(
        sha256=digest(read), numbers=range(1, len(families) + 1), families=families, base=scores[0], tuned=scores[1],
        baselines=baselines,
    )  # fmt: skip
    tests = rows.tests(SEED, RESAMPLES)
    verdict = decided_against_baselines(tests) if baselines else decided(tests)
    values = {"goal": "better", "verdict": verdict, "method": READ, "rows": rows, **found}
    return write_verdict(folder, values, tests[:1] if baselines else tests, *files)
