"""Preference tuning judged by what it is for: on held-out pairs, is the better answer likelier, and by how much.

Both are read off the trained model in this process, on the very tokens that the objective counts: the base is the same
model without its adapter. Answers are not generated, because a better answer need not be the written one.
"""

from collections.abc import Iterable, Sequence

import torch

from settle.base.event_log import Events
from settle.base.events import Progress
from settle.base.statistics import paired_test
from settle.data.batches import Batch
from settle.evaluate.compare.compare import Comparison
from settle.model.decoder import Decoder
from settle.train.objectives import Objective

ACCURACY, MARGIN = "preference accuracy", "reward margin"


def compare_preferences(
    model: Decoder,
    objective: Objective,
    batches: Sequence[Batch],
    names: tuple[str, str],
    events: Events,
    families: Sequence[int] | None = None,
) -> Comparison:
    """Compare the trained model with its base on held-out pairs.

    names: of the base and of the trained model. families: of the pairs of all batches, as in `paired_test`.

    Preference accuracy is the share of pairs whose better answer has the higher log-probability; the reward margin is
    the objective's own reward of the better answer less that of the worse, which is 0 for the base (arXiv:2305.18290).
    """
    base: list[float] = []
    tuned: list[float] = []
    margins: list[float] = []
    training = model.training
    model.eval()
    with torch.no_grad():
        for number, batch in enumerate(batches, 1):
            pairs = objective.preferences(model, batch)
            base += _right(pairs.base.tolist())
            tuned += _right(pairs.tuned.tolist())
            margins += pairs.rewards.tolist()
            events.emit(Progress(what="compare pairs", done=number, total=len(batches), unit="blocks"))
    model.train(training)
    return Comparison(
        base=names[0],
        tuned=names[1],
        measure=ACCURACY,
        is_share=True,
        score=paired_test(base, tuned, families),
        margin=paired_test([0.0] * len(margins), margins, families),
    )


def _right(gaps: Iterable[float]) -> list[float]:
    """Return 1 for a pair whose better answer is the likelier one, and 0.5 where both are equally likely."""
    return [0.5 if gap == 0 else float(gap > 0) for gap in gaps]
