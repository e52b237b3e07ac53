"""The A/B of a finding: two sides that differ in one setting alone, and what fixes the cause."""

from dataclasses import dataclass

from settle.doctor.findings import Fix
from settle.experiment.two_arms import FEWEST_ITEMS, LEAST_RATIO, GuardedArm, TwoArms
from settle.experiment.two_arms import Measured as Item

__all__ = ["FEWEST_ITEMS", "LEAST_RATIO", "Item", "Side", "Trial"]


class Side(GuardedArm):
    """A set-up that is measured. name: to show, with what it changes. num_bytes: of memory while it is open."""

    def open(self) -> None:  # some need not
        """Make it ready to be measured. Raises SettleError."""

    def load(self) -> None:
        self.open()


@dataclass(frozen=True)
class Trial(TwoArms):
    """An A/B with what fixes the cause, where the trial itself found the change that helps; else the check knows it."""

    fix: Fix | None = None
