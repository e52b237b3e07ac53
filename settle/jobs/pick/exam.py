"""What candidates are asked that answer otherwise than in text: an embedder's search, a decision model's rows."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from settle.jobs.pick.measure import Taken
from settle.jobs.pick.needs import Needs
from settle.jobs.pick.prompts import Prompts
from settle.library.reference import ModelRef


class Exam(ABC):
    """Rows that every candidate answers, all of them, and the score of each row.

    title: of the score. noun: of its rows. unit: what a second brings. columns: names in the table where they differ.
    tokens: of a text that is read whole, where none are asked for. families: the same number for rows that belong
    together. given: rows that the files hold.
    """

    title: ClassVar[str]
    noun: ClassVar[str]
    unit: ClassVar[str]
    columns: ClassVar[Mapping[str, str]]
    tokens: ClassVar[int]
    families: Sequence[int]
    given: int

    @property
    @abstractmethod
    def beside(self) -> str:
        """What else there is to know of the rows, in a few words."""

    @abstractmethod
    def needs(self, context: int, must_take_it: bool, languages: frozenset[str], commercial: bool) -> Needs:
        """What it asks of a model."""

    @abstractmethod
    def takes(self, ref: ModelRef, tokens: int) -> Taken:
        """One round of time and memory. Raises SettleError."""

    @abstractmethod
    def scores(self, ref: ModelRef, tokens: int) -> list[float]:
        """Of every row, from 0 to 1. Raises SettleError."""

    @property
    def prompts(self) -> Prompts:
        """As `pick` counts them."""
        return Prompts([], self.families, True, self.given)
