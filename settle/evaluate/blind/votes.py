"""Pairs of answers and the votes on them, of everyone who compares: home()/votes.jsonl, a file that only grows.

A line is a pair, a vote on one, or that it was shown which model wrote what: after that its vote is final. The pair
itself says which is which, so that anybody can check it afterwards.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from settle.base.errors import UsageError, cannot_write
from settle.base.event_log import read_records
from settle.base.files import append_lines, home

Vote = Literal["a", "b", "same", "bad"]
VOTES: dict[Vote, str] = {"a": "A is better", "b": "B is better", "same": "Both are the same", "bad": "Both are bad"}
LOCK_SECONDS = 10.0


class AnswerPair(BaseModel):
    """Two answers to the same messages.

    session: of pairs whose models are revealed together. conversation: of pairs that follow each other there. models:
    their names; weights: the stamps of their files. a: the place in `models` of the one that is shown as A. messages:
    what both were given; answers: of A and of B. nats: see `WeightDifference`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["pair"] = "pair"
    time: float
    id: str
    session: str
    conversation: int
    seed: int
    turn: int
    models: tuple[str, str]
    weights: tuple[str, str]
    a: Literal[0, 1]
    system: str | None
    messages: list[dict[str, str]]
    answers: tuple[str, str]
    sampling: dict[str, float | None]
    nats: float | None
    stopped: bool = False

    @property
    def names(self) -> tuple[str, str]:
        """Who wrote A, and who wrote B."""
        return self.models[self.a], self.models[1 - self.a]

    @property
    def reveal_text(self) -> str:
        return f"A was {self.names[0]}, B was {self.names[1]}"


@dataclass(frozen=True)
class Ballots:
    """All of the file. pairs: by their ids, in order; votes: of those that have one; revealed: ids."""

    pairs: dict[str, AnswerPair] = field(default_factory=dict)
    votes: dict[str, Vote] = field(default_factory=dict)
    revealed: set[str] = field(default_factory=set)

    @classmethod
    def read(cls) -> "Ballots":
        """Read all votes; a line that was cut off or changed by hand is passed over."""
        ballots = cls()
        for record in read_records(_file()):
            name, vote = str(record.get("pair")), record.get("vote")
            if record["kind"] == "pair":
                try:
                    pair = AnswerPair.model_validate(record)
                except ValidationError:
                    continue
                ballots.pairs[pair.id] = pair
            elif record["kind"] == "vote" and vote in VOTES and name not in ballots.revealed:
                ballots.votes[name] = vote
            elif record["kind"] == "reveal":
                ballots.revealed.add(name)
        return ballots


def add_pair(pair: AnswerPair) -> None:
    """Write a pair. Raises ResourceError when the file cannot be written."""
    _append([pair.model_dump()])


def vote(name: str, choice: str) -> AnswerPair:
    """Vote on the pair of this id. Raises UsageError, ResourceError.

    Until it is revealed, another vote replaces this one.
    """
    if choice not in VOTES:
        raise UsageError(f"{choice!r} is no vote", f"give one of {', '.join(VOTES)}")
    ballots = Ballots.read()
    if name not in ballots.pairs:
        raise UsageError(f"there is no pair of answers {name!r}", "`settle chat MODEL PROMPT --with MODEL` makes one")
    if name in ballots.revealed:
        raise UsageError(f"it was shown who wrote the answers of {name}", "vote before, on another pair")
    _append([{"kind": "vote", "time": time.time(), "pair": name, "vote": choice}])
    return ballots.pairs[name]


def reveal(pairs: Sequence[str]) -> None:
    """From now on the votes on these are final, and those without one can have none. Raises ResourceError."""
    _append([{"kind": "reveal", "time": time.time(), "pair": name} for name in pairs])


def _file() -> Path:
    return home() / "votes.jsonl"


def _append(records: Sequence[dict[str, object]]) -> None:
    """Append records under a lock: other tabs and commands may append at the same time."""
    path = _file()
    try:
        with FileLock(path.with_suffix(".lock"), LOCK_SECONDS):
            append_lines(path, records, sync=True)
    except OSError as e:  # a lock that is held for too long, too
        raise cannot_write(path, e) from None
