"""How likely a set-up finds what it should: nats per token of known answers and of prose, read by llama.cpp.

The engine turns text into ids as it does for a user, and a reader in a second child gives the ids' likelihoods.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

import numpy as np

from settle.base.errors import SettleError
from settle.data.likelihoods import Likelihoods
from settle.doctor.known_answers import PARAGRAPHS, SPELLED, KnownAnswer
from settle.doctor.trial import FEWEST_ITEMS, HeldSide, Item, Trial
from settle.doctor.turns import rendered, turn_end
from settle.infer.engine import Engine
from settle.infer.scorer import AS_IT_IS, Overrides, Scorer
from settle.library.facts import TEMPLATE_KEY
from settle.library.reference import ModelRef

SKIPPED = 24  # tokens of a long text, which are guesses whatever the set-up
CONTEXT = 1024  # tokens, of what is read at once
PROVEN = 6  # paragraphs that a proof reads
GUARDED = FEWEST_ITEMS  # texts that may not get worse by a fix
HARM_NATS = 0.02  # per token, that they may not get worse by
NATS = "nats per token"


class LikelihoodReading(NamedTuple):
    """Ids of a text that are read by a model."""

    ids: Sequence[int]
    first: int  # place of the first id whose likelihood counts, at least 1


class Reader:
    """A GGUF file, with its adapter, that turns text into ids and says how likely they are.

    Use it as a context manager. path: of a file in place of the model's own. overrides: of the context; the adapter is
    the model's.
    """

    def __init__(
        self, model: ModelRef, path: Path | None = None, context: int = CONTEXT, overrides: Overrides = AS_IT_IS
    ) -> None:
        weights = path or model.weights
        self.engine = Engine(weights, context, adapter=model.adapter)
        self._overrides = overrides._replace(adapter=model.adapter)
        self._scorer = Scorer(weights, min(context, self.engine.context) - 1, overrides=self._overrides)

    def __enter__(self) -> "Reader":
        with contextlib.ExitStack() as opening:
            opening.enter_context(self.engine)
            opening.enter_context(self._scorer)
            self._opened = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @contextlib.contextmanager
    def overridden(self, overrides: Overrides) -> Iterator[None]:
        """Read texts with `overrides` of the context while it lasts. Raises EngineError where that cannot be."""
        self._scorer.reopen(overrides)
        try:
            yield
        finally:
            self._scorer.reopen(self._overrides)

    def nats(self, reading: LikelihoodReading) -> float:
        """Return the mean negative log-likelihood of the ids from `first` on."""
        return float(np.mean(self.losses(reading)))

    def nats_of_end(self, reading: LikelihoodReading) -> float:
        """Return what `nats` does, much more quickly where the text before `first` is long."""
        return float(-np.mean(self._scorer.positions(list(reading.ids), 1, reading.first).logprobs[:-1]))

    def recorded(self, windows: Sequence[Sequence[int]], folder: Path) -> Likelihoods:
        """Record in `folder` what the model expects after each token of some windows."""
        return self._scorer.likelihoods(windows, folder)

    def divergence(self, record: Likelihoods, window: int) -> float:
        """Return KL(record ‖ this) over one of its windows, mean nats per token."""
        return float(self._scorer.compare_window(record, window).kl.mean())

    def losses(self, reading: LikelihoodReading) -> np.ndarray:
        """Return the negative log-likelihood of each id from `first` on (L,), in nats."""
        return losses_of(self._scorer, reading)


def losses_of(scorer: Scorer, reading: LikelihoodReading) -> np.ndarray:
    """Return the negative log-likelihood of each id from `first` on (L,), in nats, by a file that a scorer reads."""
    rows = scorer.rows(list(reading.ids), top=1, sampled=1)
    return -np.asarray(rows.came_logprobs, np.float64)[reading.first - 1 :]


class _SharedReaders:
    """The reader that the checks of one examination share, one model in memory at a time."""

    def __init__(self) -> None:
        self._open: tuple[tuple[Path, Path | None], Reader] | None = None
        self._failed: dict[tuple[Path, Path | None], SettleError] = {}

    def of(self, model: ModelRef) -> Reader:
        """Return the reader of a model's file. Raises the same SettleError each time where it cannot be opened."""
        key = model.weights, model.adapter
        if key in self._failed:
            raise self._failed[key]
        if self._open is None or self._open[0] != key:
            self.close()
            try:
                self._open = key, Reader(model).__enter__()
            except SettleError as e:
                self._failed[key] = e
                raise
        return self._open[1]

    def close(self) -> None:
        opened, self._open = self._open, None
        if opened is not None:
            opened[1].__exit__()


_shared: ContextVar[_SharedReaders | None] = ContextVar("shared_readers", default=None)


@contextlib.contextmanager
def shared_readers() -> Iterator[None]:
    """Let `reader_of` give every check of this examination the same reader: loading takes longer than reading."""
    readers = _SharedReaders()
    token = _shared.set(readers)
    try:
        yield
    finally:
        _shared.reset(token)
        readers.close()


@contextlib.contextmanager
def reader_of(model: ModelRef) -> Iterator[Reader]:
    """Open a reader of the file of `model`, or share the examination's. Raises SettleError."""
    readers = _shared.get()
    if readers is not None:
        yield readers.of(model)
        return
    with Reader(model) as reader:
        yield reader


def strength_of(gain: float) -> float:
    """Return how sure a gain in nats per token makes of its cause: the cause that explains more comes first."""
    return 1.0 - math.exp(-gain)


def text_reading(engine: Engine, text: str, most: int = CONTEXT) -> LikelihoodReading:
    """Return at most `most` tokens of a plain text, within the model's context; the first words do not count."""
    ids = engine.plain(text)[: min(most, engine.context)]
    return LikelihoodReading(ids, max(1, min(SKIPPED, len(ids) // 4)))


def own_template(engine: Engine) -> str | None:
    """Return the chat template of an engine's file; None where it takes no turns."""
    return str(engine.metadata[TEMPLATE_KEY]) if engine.takes_turns else None


def answer_reading(
    engine: Engine, known: KnownAnswer, template: str | None, end: str | None, before: KnownAnswer | None = None
) -> LikelihoodReading:
    """Return a known answer behind its question.

    template: None for plain text. end: what must follow the answer, of a template its own; None for nothing. before: an
    earlier turn of the conversation.
    """
    answer = engine.tokenize(known.answer)
    if template is None:
        earlier = f"Question: {before.question}\nAnswer: {before.answer}\n" if before else ""
        prompt = engine.plain(f"{earlier}Question: {known.question}\nAnswer:")
        answer = engine.tokenize(f" {known.answer}")
    else:
        earlier_turns = ((before.question, before.answer),) if before else ()
        text = rendered(engine.metadata, template, known.question, earlier_turns)
        prompt = engine.opened(engine.tokenize(text, special=True))
        end = end and turn_end(engine.metadata, template)
    return LikelihoodReading([*prompt, *answer, *(engine.tokenize(end, special=True)[:1] if end else ())], len(prompt))


class LikelihoodSide(HeldSide[Reader]):
    """A set-up measured by the nats per token that it gives each item, and each guard, a plain text.

    model: whose file is read, or `path` instead.
    """

    def __init__(
        self,
        name: str,
        model: ModelRef,
        path: Path | None = None,
        context: int = CONTEXT,
        overrides: Overrides = AS_IT_IS,
    ) -> None:
        self.name, self._model, self._path, self._context = name, model, path, context
        self._overrides = overrides
        self.num_bytes = 2 * (path or model.weights).stat().st_size

    def make(self) -> Reader:
        return Reader(self._model, self._path, self._context, self._overrides)

    def reading(self, engine: Engine, item: Item) -> LikelihoodReading:
        """Return the ids of an item in this set-up, and from where on they count; here those of plain text."""
        return text_reading(engine, str(item))

    def measure(self, item: Item) -> float:
        return self.held.nats(self.reading(self.held.engine, item))

    def guard(self, item: Item) -> float:
        return self.held.nats(self.guard_reading(self.held.engine, item))

    def guard_reading(self, engine: Engine, item: Item) -> LikelihoodReading:
        """Return the ids of a guard in this set-up, and from where on they count."""
        return text_reading(engine, str(item))


def prose_trial(knob: str, model: ModelRef, path: Path, looked: int, least: float, changed: str = "changed") -> Trial:
    """Return the A/B of a model and another file by the loss of prose.

    looked: paragraphs that raised the suspicion, which prove nothing. changed: name of the side with the other file.
    """
    return Trial(
        knob=knob,
        before=LikelihoodSide("as it is", model),
        after=LikelihoodSide(changed, model, path),
        measure="loss of prose",
        unit=NATS,
        items=PARAGRAPHS[looked : looked + PROVEN],
        others=PARAGRAPHS[looked + PROVEN :],
        least=least,
        guards=SPELLED[:GUARDED],
        harm=HARM_NATS,
        seconds=1.0,
    )
