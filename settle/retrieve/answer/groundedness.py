"""A groundedness model of the store scores whether a passage supports a sentence, once `--check` has calibrated it.

What the check finds is stored with the collection: the threshold of the model's logits, and whether the model tells
supported sentences from others here. A model that does not, or that was pulled since, scores nothing.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import exp, log

from settle.retrieve.answer.pair_models import PairModel, pair_model
from settle.retrieve.index.catalogue import Catalogue

SUPPORTED = 0.6  # score from which on a passage supports a sentence: see bench/support.py
_SETTING = "groundedness"


@dataclass(frozen=True)
class GroundednessCheck:
    """How well a model told the sentences of a collection's passages from sentences that these do not support."""

    sha256: str  # of the model
    threshold: float  # logit from which on a sentence is supported
    pairs: int  # of each kind
    accepted: tuple[float, float]  # share of the supported sentences that it accepts, and its lower bound
    rejected: tuple[float, float]  # share of the others that it rejects, and its lower bound
    is_trusted: bool


@dataclass(frozen=True)
class Groundedness:
    """A calibrated model."""

    model: PairModel
    threshold: float

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return how likely each passage supports its sentence, `SUPPORTED` at the threshold."""
        offset = log(SUPPORTED / (1 - SUPPORTED)) - self.threshold
        return [1 / (1 + exp(-max(-30.0, min(30.0, logit + offset)))) for logit in self.model.logits(pairs)]


def store_check(catalogue: Catalogue, found: GroundednessCheck) -> None:
    """Store a check with the collection."""
    catalogue.settings.set(_SETTING, asdict(found))


def groundedness(catalogue: Catalogue) -> Groundedness | None:
    """Return the model where it is calibrated on the collection and trusted."""
    model = pair_model("ground")
    record = catalogue.settings.get(_SETTING, dict) if model else None
    if model is None or not record or record["sha256"] != model.sha256 or not record["is_trusted"]:
        return None
    return Groundedness(model, record["threshold"])


def uncalibrated(catalogue: Catalogue) -> str | None:
    """Return the name of a groundedness model that this collection has not been checked with."""
    model = pair_model("ground")
    record = catalogue.settings.get(_SETTING, dict) if model else None
    return model.name if model and (not record or record["sha256"] != model.sha256) else None
