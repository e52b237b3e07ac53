"""Are the training rows learned, so that more passes over them can show nothing more?

Of few rows a tenth chooses the weights: too few to tell *settled* or *overfitting* from their loss, which jumps from
one evaluation to the next while the rows are learned by heart. The loss on the training rows tells it: once a whole
pass costs less than the standard error of the held-out loss, what is left in them is less than that sample can show.
"""

import statistics
from collections.abc import Sequence
from typing import Protocol

from settle.train.settled import Evaluation

LEFT_SHARE = 0.05  # of the floor, that learned rows cost at most
EVALUATIONS = 5  # whose standard errors' median counts
FEWEST_PASSES = 2.0  # over the rows, of which the last is averaged


class JudgedEvaluation(Evaluation, Protocol):
    @property
    def stderr(self) -> float:
        """Standard error of the loss through the finite sample, nats."""
        ...


def learned(
    history: Sequence[JudgedEvaluation],
    train_losses: Sequence[float],
    passes: float,
    steps: int,
    floor: float | None = None,
) -> str:
    """Why the rows count as learned, empty while they do not. train_losses: of the latest of `steps` steps (at least of
    some hundred, where a pass takes more), which were `passes` over the rows. floor: the loss of knowing only how often
    each target occurs. Losses in the units of the held-out loss.
    """
    if passes < FEWEST_PASSES:
        return ""
    last = train_losses[-max(1, round(steps / passes)) :]
    left = sum(last) / len(last)
    stderr = statistics.median(e.stderr for e in history[-EVALUATIONS:])  # that of the lowest loss is low by luck
    # a handful of held-out rows is unsure by half a nat, with which many rows are not learned yet
    if len(history) < EVALUATIONS or not left < stderr or (floor is not None and left > LEFT_SHARE * floor):
        return ""
    return (
        f"the training rows are learned: over the last pass their loss was {left:.4f}, less than the held-out rows can "
        f"tell apart ({history[-1].loss:.4f} ± {stderr:.4f}); more rows would help, more passes hardly"
    )
