"""What the votes of people say about two models, with an interval once there are enough of them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady, Say
from settle.base.statistics import PairedTest, paired_test
from settle.evaluate.blind.votes import AnswerPair, Ballots, Vote, reveal, vote

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
        value, low, high = (100 * end for end in (self.test.difference.value, *self._ends))
        if value < 0:
            one, two, value, low, high = two, one, -value, -high, -low
        figures = f"{two} has {value:.0f} more of 100 votes, 95 % interval {low:.0f} to {high:.0f}"
        if not self.test.is_shown:
            return f"no difference is shown: {figures}"
        return f"{two} is preferred to {one}: {figures}"

    @property
    def _ends(self) -> tuple[float, float]:
        assert self.test
        return max(-1.0, self.test.difference.low), min(1.0, self.test.difference.high)

    def to_json(self) -> dict[str, object]:
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
