"""A training history: losses by step, the checkpoints that were kept, and which of them the evaluations favour."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

FEW = 5  # evaluations, below which a minimum may be chance
NEIGHBOURS = 1  # evaluations on either side that a smoothed one is the mean of
NOISE_STDERRS = 2.0  # a difference of fewer is noise
LEAST_SHARE = 0.005  # of the loss: a smaller rise does not matter, however sure it is

Point = tuple[int, float]  # step, loss


@dataclass(frozen=True)
class History:
    """path: what was read. train, evaluations: (step, loss) in the order of the steps, finite or not. checkpoints: the
    steps that there is a folder of. keeps_best: whether the trainer says that it kept the best weights."""

    path: Path
    train: Sequence[Point]
    evaluations: Sequence[Point]
    checkpoints: Sequence[int] = ()
    keeps_best: bool = False

    @property
    def finite(self) -> list[Point]:
        return [(step, loss) for step, loss in self.evaluations if math.isfinite(loss)]

    @property
    def noise(self) -> float:
        """Standard deviation of one evaluation about its trend, by second differences: these of a straight line are
        zero, and those of independent noise have six times its variance."""
        losses = [loss for _, loss in self.finite]
        bends = [a - 2 * b + c for a, b, c in zip(losses, losses[1:], losses[2:], strict=False)]
        return 1.4826 * median(abs(bend) for bend in bends) / math.sqrt(6) if bends else math.inf

    @property
    def smoothed(self) -> list[Point]:
        """Each evaluation as the mean of it and its neighbours."""
        points = self.finite
        return [
            (step, fmean(loss for _, loss in points[max(0, at - NEIGHBOURS) : at + NEIGHBOURS + 1]))
            for at, (step, _) in enumerate(points)
        ]

    def best(self) -> Point | None:
        """The smoothed evaluation with the lowest loss; None where there are too few."""
        return min(self.smoothed, key=lambda point: point[1]) if len(self.finite) >= FEW else None

    def rise(self) -> tuple[float, float] | None:
        """How much higher the loss is at the end than at its best, and how much of that noise could make; None where
        there are too few evaluations."""
        best = self.best()
        if best is None:
            return None
        end = fmean(loss for _, loss in self.finite[-1 - NEIGHBOURS :])
        both, lowest = math.sqrt(1 / (1 + NEIGHBOURS) + 1 / (1 + 2 * NEIGHBOURS)), math.sqrt(1 / (1 + 2 * NEIGHBOURS))
        # the lowest of n is low by chance too: by sqrt(2 ln n) standard deviations at most, as n grows
        could_be = self.noise * (NOISE_STDERRS * both + math.sqrt(2 * math.log(len(self.finite))) * lowest)
        return end - best[1], max(could_be, LEAST_SHARE * abs(best[1]))

    def checkpoint(self) -> int | None:
        """The step of the kept checkpoint that lies nearest to the best evaluation; None where none is kept."""
        best = self.best()
        return min(self.checkpoints, key=lambda step: abs(step - best[0])) if best and self.checkpoints else None

    def advice(self) -> str:
        """Which checkpoint to take, in a sentence."""
        best, rise = self.best(), self.rise()
        counts = f"{len(self.train):,} training losses, {len(self.evaluations):,} evaluations"
        if best is None or rise is None:
            return f"{self.path.name}: {counts}: too few evaluations to say which checkpoint is best"
        if rise[0] <= rise[1]:
            advice = "the end is as good as the best within the noise of the evaluations, so take the last checkpoint"
        else:
            kept = self.checkpoint()
            take = f"take checkpoint {kept:,}" if kept is not None else "no checkpoint from there was kept"
            advice = f"the loss was lowest about step {best[0]:,}: {take}"
        return f"{self.path.name}: {counts}; {advice}"
