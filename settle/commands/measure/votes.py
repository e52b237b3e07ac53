"""settle votes: what people preferred when they did not know which model wrote what."""

from typing import ClassVar

from pydantic import Field

from settle.base.event_log import Events
from settle.commands import Command
from settle.evaluate.blind.preference import votes


class Votes(Command):
    """Show what was voted on answers of two models (`settle chat MODEL --with MODEL`, or the studio), with an interval
    once there are 15 votes. With PAIR and CHOICE: vote on a pair of answers; then it is shown who wrote it.
    """

    positional: ClassVar[tuple[str, ...]] = ("pair", "choice")
    is_watched: ClassVar[bool] = False

    pair: str | None = Field(None, description="id of a pair of answers")
    choice: str | None = Field(None, description="a, b, same, or bad where neither answer is good")

    def run(self, events: Events) -> int:
        return votes(self.pair, self.choice, events)
