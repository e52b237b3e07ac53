"""How likely a set-up finds what it should: nats per token of known answers and of prose, read by llama.cpp.

The engine turns text into ids as it does for a person, and a reader in a second child gives the ids' likelihoods.
"""

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from settle.doctor.known_answers import KnownAnswer
from settle.doctor.trial import Item, Side
from settle.infer.engine import Engine
from settle.infer.scorer import Scorer
from settle.library.reference import ModelRef

CONTEXT = 1024  # tokens, of what is read at once


class Reading(NamedTuple):
    """ids: of a text. first: place of the first id whose likelihood counts, at least 1."""

    ids: Sequence[int]
    first: int


class Reader:
    """A GGUF file that turns text into ids, and says how likely they are. Use it as a context manager."""

    def __init__(self, model: ModelRef, path: Path | None = None, context: int = CONTEXT, cache: str = "f16") -> None:
        weights = path or model.weights
        self.engine = Engine(weights, context)
        self._scorer = Scorer(weights, min(context, self.engine.context) - 1)

    def __enter__(self) -> "Reader":
        self.engine.start()
        try:
            self._scorer.start()
        except BaseException:
            self.engine.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._scorer.close()
        self.engine.close()

    def nats(self, reading: Reading) -> float:
        """Mean negative log-likelihood of the ids from `first` on."""
        return float(np.mean(self.losses(reading)))

    def losses(self, reading: Reading) -> np.ndarray:
        """Negative log-likelihood of each id from `first` on (L,), in nats."""
        rows = self._scorer.rows(list(reading.ids), top=1, sampled=1)
        return -np.asarray(rows.came_logprobs, np.float64)[reading.first - 1 :]


_open: dict[Path, Reader] = {}  # of the look that is going on
_looks = 0


@contextlib.contextmanager
def shared_readers() -> Iterator[None]:
    """While it lasts, `reader_of` gives every check the same reader of a file: loading takes longer than reading."""
    global _looks
    _looks += 1
    try:
        yield
    finally:
        _looks -= 1
        while not _looks and _open:
            _open.popitem()[1].__exit__()


@contextlib.contextmanager
def reader_of(model: ModelRef) -> Iterator[Reader]:
    """A reader of the file of `model`, for a look. Raises SettleError."""
    if not _looks:
        with Reader(model) as reader:
            yield reader
        return
    if model.weights not in _open:
        while _open:  # one model in memory at a time
            _open.popitem()[1].__exit__()
        _open[model.weights] = Reader(model).__enter__()
    yield _open[model.weights]


def answer_reading(engine: Engine, known: KnownAnswer) -> Reading:
    """A known answer behind its question, by the file's own chat template, or as plain text where it has none."""
    if engine.takes_turns:
        prompt = engine.turns([{"role": "user", "content": known.question}])
    else:
        prompt = engine.plain(f"Question: {known.question}\nAnswer: ")
    answer = engine.tokenize(known.answer)
    return Reading([*prompt, *answer], len(prompt))


class LikelihoodSide(Side):
    """A set-up measured by the nats per token that it gives each item. model: whose file is read, or `path` instead."""

    def __init__(self, name: str, model: ModelRef, path: Path | None = None, context: int = CONTEXT) -> None:
        self.name, self._model, self._path, self._context = name, model, path, context
        self.num_bytes = 2 * (path or model.weights).stat().st_size
        self._reader: Reader | None = None

    def open(self) -> None:
        reader = Reader(self._model, self._path, self._context)
        self._reader = reader.__enter__()

    @abstractmethod
    def reading(self, engine: Engine, item: Item) -> Reading:
        """The ids of an item in this set-up, and from where on they count."""

    def measure(self, item: Item) -> float:
        assert self._reader is not None
        return self._reader.nats(self.reading(self._reader.engine, item))

    def close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.__exit__()
