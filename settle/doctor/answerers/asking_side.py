"""A side of an A/B that asks the same questions with one setting changed."""

from collections.abc import Callable

from settle.doctor.answerers import Answerer
from settle.doctor.trial import Item, Side
from settle.wire.exchange import Change, Reply, Request

Score = Callable[[Request, Reply], float]


class AskingSide(Side):
    """answerer: which both sides share. base: the request that an item's question is put into. change: what this side
    changes of a request. score: of an answer. enough: of an answer so far, after which no more is read. guarded:
    a score that must not rise."""

    def __init__(
        self,
        name: str,
        answerer: Answerer,
        base: Request,
        change: Change,
        score: Score,
        enough: Callable[[Reply], bool] | None = None,
        guarded: Score | None = None,
    ) -> None:
        self.name, self._answerer, self._base = name, answerer, base
        self._change, self._score, self._enough, self._guarded = change, score, enough, guarded
        self.num_bytes = answerer.num_bytes // 2  # both sides are one process
        self._answers: dict[str, tuple[Request, Reply]] = {}  # by question: a guard may look at what was measured

    def open(self) -> None:
        self._answerer.open()

    def close(self) -> None:
        self._answerer.close()

    def measure(self, item: Item) -> float:
        return self._scored(item, self._score)

    def guard(self, item: Item) -> float:
        assert self._guarded is not None
        return self._scored(item, self._guarded)

    def _scored(self, item: Item, score: Score) -> float:
        question = str(item)
        if question not in self._answers:
            request = self._change(self._base.asking(question))
            self._answers[question] = request, self._answerer.ask(request, self._enough)
        return score(*self._answers[question])


def unchanged(request: Request) -> Request:
    return request
