"""The answers that changed most, side by side."""

import difflib
import itertools
from collections.abc import Sequence

from settle.base.events import AnswerChange
from settle.evaluate.compare.cases import Case

MOST_SHOWN = 10
COMPARED_CHARACTERS = 160  # by which answers of equal score are compared


def most_changed(
    cases: Sequence[Case],
    base: Sequence[str],
    tuned: Sequence[str],
    before: Sequence[float],
    after: Sequence[float],
    most: int = MOST_SHOWN,
) -> list[AnswerChange]:
    """Up to `most` rows whose answers differ: the largest gains and the largest losses in turns, then those of equal
    score whose texts are least alike."""
    differing = [
        AnswerChange(
            number=case.number,
            gain=new - old,
            question=case.question,
            reference=case.reference,
            base=ours,
            tuned=theirs,
        )
        for case, ours, theirs, old, new in zip(cases, base, tuned, before, after, strict=True)
        if ours.strip() != theirs.strip()
    ]
    gains = sorted((c for c in differing if c.gain > 0), key=lambda c: -c.gain)
    losses = sorted((c for c in differing if c.gain < 0), key=lambda c: c.gain)
    equal = sorted((c for c in differing if c.gain == 0), key=_likeness)
    in_turns = itertools.chain.from_iterable(itertools.zip_longest(gains, losses))
    return [c for c in (*in_turns, *equal) if c is not None][:most]


def _likeness(change: AnswerChange) -> float:
    base, tuned = change.base[:COMPARED_CHARACTERS], change.tuned[:COMPARED_CHARACTERS]
    return difflib.SequenceMatcher(None, base, tuned, autojunk=False).quick_ratio()
