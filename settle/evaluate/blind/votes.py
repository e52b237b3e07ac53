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
from settle.base.event_log import Events, read_records
from settle.base.events import Listing, ResultReady, Say
from settle.base.files import JsonObject, append_lines, home
from settle.base.run import Run, present_names
from settle.base.statistics import PairedTest, paired_test

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
        """Read all votes, of models by their present names; a torn or edited line is passed over."""
        ballots, runs = cls(), Run.all()
        for record in read_records(_file()):
            name, vote = str(record.get("pair")), record.get("vote")
            if record["kind"] == "pair":
                try:
                    pair = AnswerPair.model_validate(record)
                except ValidationError:
                    continue
                one, two = (present_names(model, runs) for model in pair.models)
                ballots.pairs[pair.id] = pair.model_copy(update={"models": (one, two)})
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


def _append(records: Sequence[JsonObject]) -> None:
    """Append records under a lock: other tabs and commands may append at the same time."""
    path = _file()
    try:
        with FileLock(path.with_suffix(".lock"), LOCK_SECONDS):
            append_lines(path, records, sync=True)
    except OSError as e:  # a lock that is held for too long, too
        raise cannot_write(path, e) from None


FEWEST = 15  # votes below which there is no interval


@dataclass(frozen=True)
class Preference:
    """Votes between two models.

    models: two names. wins: votes for each; same, bad: votes for neither. conversations: that the votes are from. test:
    of the second against the first, None below FEWEST votes; pairs of one conversation belong together.
    """

    models: tuple[str, str]
    wins: tuple[int, int]
    same: int
    bad: int
    conversations: int
    test: PairedTest | None

    @property
    def votes(self) -> int:
        return sum(self.wins) + self.same + self.bad

    @property
    def shares(self) -> str:
        return ", ".join(f"{name} {wins}" for name, wins in zip(self.models, self.wins, strict=True))

    @property
    def missing(self) -> int:
        return max(0, FEWEST - self.votes)

    @property
    def sentence(self) -> str:
        if self.test is None:
            return f"{self.missing} more vote{'s are' if self.missing > 1 else ' is'} needed for an interval"
        one, two = self.models
        difference = self.test.difference
        ends = difference.value, max(-1.0, difference.low), min(1.0, difference.high)
        value, low, high = (100 * end for end in ends)
        if value < 0:
            one, two, value, low, high = two, one, -value, -high, -low
        figures = f"{two} has {value:.0f} more of 100 votes, 95 % interval {low:.0f} to {high:.0f}"
        if not self.test.is_shown:
            return f"no difference is shown: {figures}"
        return f"{two} is preferred to {one}: {figures}"

    def to_json(self) -> JsonObject:
        return {
            "models": list(self.models), "votes": self.votes, "wins": list(self.wins), "same": self.same,
            "bad": self.bad, "conversations": self.conversations, "missing": self.missing, "sentence": self.sentence,
            "test": self.test and self.test.to_json(),
        }  # fmt: skip


def preferences(ballots: Ballots) -> list[Preference]:
    """Count the votes on each two models that were compared; a model whose files have changed is another one."""
    latest: dict[str, AnswerPair] = {name: pair for pair in ballots.pairs.values() for name in pair.models}
    together: dict[tuple[str, ...], list[tuple[AnswerPair, Vote]]] = {}
    for id, choice in ballots.votes.items():
        if pair := ballots.pairs.get(id):
            files = sorted(zip(pair.models, pair.weights, strict=True))
            together.setdefault(tuple(f"{name}\0{stamp}" for name, stamp in files), []).append((pair, choice))
    return [_preference(votes, latest) for votes in together.values()]


def count_sentence(models: tuple[str, str]) -> str:
    """Say how many votes there are, and not for whom: that would say who wrote what."""
    votes = sum(one.votes for one in preferences(Ballots.read()) if set(one.models) == set(models))
    missing = f"; an interval needs {FEWEST - votes} more" if votes < FEWEST else ""
    return f"Votes on these two models so far: {votes}{missing}."


def _preference(votes: Sequence[tuple[AnswerPair, Vote]], latest: dict[str, AnswerPair]) -> Preference:
    last, models = votes[-1][0], sorted(set(votes[0][0].models))
    shown = [_dated(name, last, latest[name]) for name in models]
    winners = [pair.names["ab".index(choice)] if choice in ("a", "b") else None for pair, choice in votes]
    scores = [[float(winner == name) for winner in winners] for name in models]
    conversations = list(dict.fromkeys((pair.session, pair.conversation) for pair, _ in votes))
    families = [conversations.index((pair.session, pair.conversation)) for pair, _ in votes]
    test = paired_test(scores[0], scores[1], families) if len(votes) >= FEWEST else None
    choices = [choice for _, choice in votes]
    return Preference(
        (shown[0], shown[1]), (int(sum(scores[0])), int(sum(scores[1]))), choices.count("same"), choices.count("bad"),
        len(conversations), test,
    )  # fmt: skip


def _dated(name: str, pair: AnswerPair, latest: AnswerPair) -> str:
    """Return a model's name; of one that has changed since, with the day when it was last compared."""
    stamps = [dict(zip(each.models, each.weights, strict=True))[name] for each in (pair, latest)]
    return name if stamps[0] == stamps[1] else f"{name} as of {time.strftime('%Y-%m-%d', time.localtime(pair.time))}"


def list_votes(events: Events) -> None:
    """Show what was voted on, and what follows from it."""
    found = preferences(Ballots.read())
    rows = [
        [" and ".join(one.models), one.votes, one.shares, one.same, one.bad, one.conversations, one.sentence]
        for one in found
    ]
    columns = ["models", "votes", "preferred", "same", "both bad", "conversations", "result"]
    note = "" if found else "No votes yet: `settle chat MODEL --with MODEL` compares two without saying which is which."
    events.emit(Listing(title="votes", columns=columns, rows=rows, note=note))
    events.emit(ResultReady(result={"preferences": [one.to_json() for one in found]}))


def votes(ballot: str | None, events: Events) -> int:
    """List the votes, or vote on a pair and show who wrote it. ballot: the pair's id, =, and the choice.

    Raises UsageError, ResourceError.
    """
    if ballot is None:
        list_votes(events)
        return 0
    name, _, choice = ballot.partition("=")
    if not choice:
        raise UsageError("there is no vote", f"`settle chat --vote {name}=a` votes for A; b, same or bad likewise")
    pair = vote(name, choice)
    reveal([pair.id])
    events.emit(Say(text=pair.reveal_text))
    both = set(pair.models)
    for one in preferences(Ballots.read()):
        if set(one.models) == both:
            events.emit(Say(text=f"votes on these two: {one.votes}; {one.sentence}"))
    events.emit(ResultReady(result={"pair": pair.id, "vote": choice, "a": pair.names[0], "b": pair.names[1]}))
    return 0
