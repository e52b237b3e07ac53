"""Warm-up, then constant, then down to zero (WSD): no step count has to be known beforehand.

Source: Hu et al. 2024, MiniCPM (arXiv 2404.06395); Hägele et al. 2024 (arXiv 2405.18392).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The learning-rate multiplier as a pure function of the step.

    `decay_start` is None while it is unknown when the run will end; the loop fixes it once.
    """

    warmup_steps: int
    decay_start: int | None = None
    decay_steps: int = 1

    def multiplier(self, step: int) -> float:
        """In (0, 1]: what the base learning rate of step `step` (0 is the first) is multiplied with."""
        warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
        if self.decay_start is None or step < self.decay_start:
            return warm
        left = self.decay_start + self.decay_steps - step
        return warm * max(left, 1) / (self.decay_steps + 1)

    @property
    def end(self) -> int | None:
        """The step count after which the run is over, once decay has begun."""
        return None if self.decay_start is None else self.decay_start + self.decay_steps

    def decay_from(self, step: int, steps: int) -> "Schedule":
        """The same schedule with the decay fixed to `steps` steps from `step`."""
        return Schedule(self.warmup_steps, step, max(1, steps))
