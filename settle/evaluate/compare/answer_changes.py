"""The answers that changed most, side by side."""

import difflib
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from settle.evaluate.compare.cases import Case

MOST = 10
ALIKE = 160  # characters by which answers of equal score are compared


@dataclass(frozen=True)
class Changed:
    """One row that both models answered. gain: score of the tuned model minus the base's."""

    number: int
    question: str
    reference: str
    base: str
    tuned: str
    gain: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def most_changed(
    cases: Sequence[Case],
    base: Sequence[str],
    tuned: Sequence[str],
    before: Sequence[float],
    after: Sequence[float],
    most: int = MOST,
) -> list[Changed]:
    """Up to `most` rows whose answers differ: the largest gains and the largest losses in turns, then those of equal
    score whose texts are least alike."""
    differing = [
        Changed(case.number, case.question, case.reference, ours, theirs, new - old)
        for case, ours, theirs, old, new in zip(cases, base, tuned, before, after, strict=True)
        if ours.strip() != theirs.strip()
    ]
    gains = sorted((c for c in differing if c.gain > 0), key=lambda c: -c.gain)
    losses = sorted((c for c in differing if c.gain < 0), key=lambda c: c.gain)
    equal = sorted((c for c in differing if c.gain == 0), key=_likeness)
    in_turns = itertools.chain.from_iterable(itertools.zip_longest(gains, losses))
    return [c for c in (*in_turns, *equal) if c is not None][:most]


def _likeness(change: Changed) -> float:
    return difflib.SequenceMatcher(None, change.base[:ALIKE], change.tuned[:ALIKE], autojunk=False).quick_ratio()
