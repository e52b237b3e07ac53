"""Warm-up, then constant, then down to zero (WSD): no step count has to be known beforehand.

Source: Hu et al. 2024, MiniCPM (arXiv 2404.06395); Hägele et al. 2024 (arXiv 2405.18392).
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Schedule:
    """The learning-rate multiplier as a pure function of the step.

    `decay_start` is None while it is unknown when the run will end. A run that ends by the clock plans the rest of its
    decay again and again (`replanned`): it then falls from `level` at `replanned_at` to zero over `decay_steps`.
    """

    warmup_steps: int
    decay_start: int | None = None
    decay_steps: int = 1
    replanned_at: int | None = None
    level: float = 1.0

    def multiplier(self, step: int) -> float:
        """In (0, 1]: what the base learning rate of step `step` (0 is the first) is multiplied with."""
        return min(1.0, (step + 1) / (self.warmup_steps + 1)) * self._decay(step)

    @property
    def end(self) -> int | None:
        """The step count after which the run is over, once decay has begun."""
        return None if self._planned_at is None else self._planned_at + self.decay_steps

    def decay_from(self, step: int, steps: int) -> "Schedule":
        """The same schedule with the decay fixed to `steps` steps from `step`."""
        return Schedule(self.warmup_steps, step, max(1, steps))

    def replanned(self, step: int, steps: int) -> "Schedule":
        """The same decay with `steps` steps left at `step`, from the level that it has reached."""
        return replace(self, replanned_at=step, decay_steps=max(1, steps), level=self._decay(step - 1))

    @property
    def _planned_at(self) -> int | None:
        return self.decay_start if self.replanned_at is None else self.replanned_at

    def _decay(self, step: int) -> float:
        """What is left of the learning rate, warm-up aside."""
        if self.decay_start is None or step < self.decay_start:
            return 1.0
        assert self.end is not None
        return self.level * max(self.end - step, 1) / (self.decay_steps + 1)
