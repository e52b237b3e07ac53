"""What is compared: a candidate answers questions; a model also says how likely it holds a text to be.

Legend: P positions, V vocabulary.
"""

import contextlib
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from settle.base.chat_template import ChatTemplate
from settle.base.errors import FormatError, UsageError
from settle.base.event_log import Events
from settle.base.events import Progress, Sample
from settle.base.tokenizer import Tokenizer
from settle.evaluate.compare.cases import Case, asking, spread_order
from settle.infer.engine import Engine, at_once
from settle.infer.live_sampling import generate, logprobs
from settle.library.reference import ModelRef
from settle.machine import memory
from settle.model.decoder import Decoder
from settle.model.load_adapter import adapter_of_gguf, attach
from settle.model.pretrained import Pretrained

SLOTS = 8  # answers at the same time: a step of eight costs little more than a step of one
TOP = 256  # likeliest tokens that llama.cpp is asked for at each position; what is left is spread evenly
CONTEXT = 2048  # tokens that one question and its answer may take
T = TypeVar("T")
OnProgress = Callable[[int], None]


@dataclass(frozen=True)
class Answer:
    """An answer of a candidate."""

    text: str  # without thoughts
    ended: bool = True  # by the model itself, and not for its length
    asked: bool = True  # whether the question fitted into the context at all
    read: int = 0  # tokens of the prompt
    written: int = 0  # tokens of the answer with its thoughts


@dataclass(frozen=True)
class Reading:
    """How likely a model holds a text to be, token by token.

    logprobs: (P,), natural, of the text's tokens. spread(i): (V,), of every token that could be at position i.
    """

    logprobs: np.ndarray
    spread: Callable[[int], np.ndarray]


class Tokenizes(Protocol):
    """Whatever counts in tokens."""

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Return the ids of a text, opened as the model expects a text to be."""


class Candidate(Tokenizes, Protocol):
    """Whatever answers questions and is compared by its answers: a model, a model with documents, or with a prompt.

    name: for people. chats: whether it takes turns by a chat template.
    """

    name: str
    chats: bool

    @abstractmethod
    def answers(
        self, cases: Sequence[Case], max_tokens: int, on_progress: OnProgress, temperature: float = 0.0
    ) -> list[Answer]:
        """Return an answer to each question; the likeliest one unless `temperature` is given.

        on_progress: called with how many there are. Raises UsageError for several turns without a chat template.
        """


class Model(Candidate):
    """A candidate that also says how likely it holds a text to be.

    context: tokens of a question and its answer together. together: texts that are best read at the same time.
    """

    context: int
    together: int = 1

    @abstractmethod
    def prompt(self, case: Case) -> list[int]:
        """Return the ids of a question. Raises UsageError for several turns where there is no chat template."""

    @abstractmethod
    def read(self, texts: Sequence[Sequence[int]], begin: Sequence[int]) -> list[Reading]:
        """Read texts (ids) from position `begin` on, 1 at least; what comes before is only context."""

    def text_prompt(self, case: Case) -> str:
        """Return the text to complete where there is no chat template. Raises UsageError for several turns."""
        if case.prompt is None:
            raise UsageError(
                f"{self.name} has no chat template, and row {case.number} has several turns",
                "give rows of a prompt and a completion, or a model with a template",
            )
        return case.prompt


class FileModel(Model):
    """A GGUF file in llama.cpp, several questions at a time. `pair` is a base and an adapter over it in one process.

    Use it as a context manager.
    """

    def __init__(self, engine: Engine, name: str, adapter_scale: float = 1.0, slots: int = SLOTS) -> None:
        self._engine, self.together = engine, slots
        self._adapter_scale = adapter_scale
        self.name = name
        self.chats = engine.takes_turns
        self.context = engine.context

    @classmethod
    def open(
        cls, path: Path, name: str, adapter: Path | None = None, context: int = CONTEXT, slots: int = SLOTS
    ) -> "FileModel":
        """Open a file, with an adapter over it or without. slots: questions at a time. Raises what `Engine` raises."""
        engine = Engine(path, context, adapter=adapter, slots=slots)
        engine.start()
        return cls(engine, name, slots=slots)

    @classmethod
    def pair(
        cls, path: Path, adapter: Path, names: tuple[str, str], context: int = CONTEXT
    ) -> tuple["FileModel", "FileModel"]:
        """Open the model of a file without its adapter and with it, both by one child: the weights are there once."""
        tuned = cls.open(path, names[1], adapter, context)
        return cls(tuned._engine, names[0], 0.0), tuned

    def __enter__(self) -> "FileModel":
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    @property
    def pid(self) -> int | None:
        return self._engine.pid

    def timings(self, prompt: Sequence[int], max_tokens: int) -> Mapping[str, float]:
        """Do as `LlamaClient.timings`."""
        return self._engine.timings(prompt, max_tokens)

    def prompt(self, case: Case) -> list[int]:
        return (
            self._engine.turns(case.messages, case.tools) if self.chats else self._engine.plain(self.text_prompt(case))
        )

    def tokenize(self, text: str) -> list[int]:
        return self._engine.plain(text)

    def answers(
        self, cases: Sequence[Case], max_tokens: int, on_progress: OnProgress, temperature: float = 0.0
    ) -> list[Answer]:
        prompts = [self.prompt(case) for case in cases]

        def answer(number: int) -> Answer:
            room = self.context - len(prompts[number])
            if room < 1:
                return Answer("", asked=False, read=len(prompts[number]))
            whole = self._engine.answer(prompts[number], min(max_tokens, room), temperature, seed=number)
            return Answer(without_thoughts(whole.text), whole.ended, True, len(prompts[number]), whole.tokens)

        return self._each(answer, len(prompts), on_progress)

    def read(self, texts: Sequence[Sequence[int]], begin: Sequence[int]) -> list[Reading]:
        return self._each(lambda number: self._read(list(texts[number]), begin[number]), len(texts), lambda done: None)

    def _read(self, ids: list[int], begin: int) -> Reading:
        rows = []
        for at in range(begin, len(ids)):
            row = self._engine.next_token_logprobs(ids[:at], TOP)
            # seldom: the actual token is none of the likeliest
            rows.append(row if ids[at] in row else self._engine.next_token_logprobs(ids[:at]))
        logprobs = np.array([row[token] for row, token in zip(rows, ids[begin:], strict=True)])
        return Reading(logprobs, lambda i: _spread(rows[i], self._engine.num_vocab))

    def _each(self, work: Callable[[int], T], number: int, on_progress: OnProgress) -> list[T]:
        self._engine.adapter_scale = self._adapter_scale
        results: list[T] = []
        for result in at_once(work, range(number), self.together, lambda: self._engine.close()):
            results.append(result)
            on_progress(len(results))
        return results


class LiveModel(Model):
    """A model in this process: fast to read, and asked without a cache, which is for short answers only.

    model: None where only prompts are needed. bare: without the adapters that are beside its linears.
    """

    def __init__(
        self, model: Decoder | None, tokenizer: Tokenizer, name: str, context: int, bare: bool = False
    ) -> None:
        self._live, self._tokenizer, self._is_bare = model, tokenizer, bare
        self.name, self.context = name, context
        self.chats = bool(tokenizer.chat_template)

    def prompt(self, case: Case) -> list[int]:
        if not self.chats:
            return self.tokenize(self.text_prompt(case))
        tokens, bos, eos = self._tokenizer.tokens, self._tokenizer.bos_id, self._tokenizer.eos_id
        template = ChatTemplate(self._tokenizer.chat_template, "" if bos is None else tokens[bos], tokens[eos])
        text = template.render(case.messages, case.tools, add_generation_prompt=True)
        return [int(i) for i in self._tokenizer.encode(text, True)]

    def tokenize(self, text: str) -> list[int]:
        ids = [int(i) for i in self._tokenizer.encode(text)]
        bos, eos = self._tokenizer.bos_id, self._tokenizer.eos_id
        opening = eos if bos is None else bos
        return [opening, *ids] if self._tokenizer.add_bos or not ids else ids

    def answers(
        self, cases: Sequence[Case], max_tokens: int, on_progress: OnProgress, temperature: float = 0.0
    ) -> list[Answer]:
        stops = (self._tokenizer.eos_id, self._tokenizer.turn_end_id)
        out = []
        for number, prompt in enumerate([self.prompt(case) for case in cases]):
            room = min(max_tokens, self.context - len(prompt))
            with self._adapters_off():
                ids = list(generate(self._model, prompt, room, temperature, 1.0, number, stops)) if room > 0 else []
            text = without_thoughts(self._tokenizer.decode(ids))
            out.append(Answer(text, len(ids) < room, room > 0, len(prompt), len(ids)))
            on_progress(number + 1)
        return out

    def read(self, texts: Sequence[Sequence[int]], begin: Sequence[int]) -> list[Reading]:
        out = []
        for ids, first in zip(texts, begin, strict=True):
            with self._adapters_off():
                rows = logprobs(self._model, ids, range(first - 1, len(ids) - 1)).cpu().numpy()
            out.append(Reading(rows[np.arange(len(rows)), list(ids[first:])], rows.__getitem__))
        return out

    @property
    def _model(self) -> Decoder:
        assert self._live is not None, "this one only makes prompts"
        return self._live

    def _adapters_off(self) -> contextlib.AbstractContextManager[object]:
        return self._model.without_adapters() if self._is_bare else contextlib.nullcontext()


def without_thoughts(text: str) -> str:
    """Return an answer without the thoughts that a reasoning model writes before it."""
    _, mark, after = text.partition("</think>")
    if mark:
        return after.strip()
    return "" if text.lstrip().startswith("<think>") else text.strip()


def _spread(likeliest: Mapping[int, float], num_vocab: int) -> np.ndarray:
    """Return log-probabilities (V,) from those of the likeliest tokens: the others share what is left evenly."""
    values = np.fromiter(likeliest.values(), float, len(likeliest))
    left = max(1.0 - float(np.exp(values).sum()), 1e-9)
    out = np.full(num_vocab, np.log(left / max(1, num_vocab - len(likeliest))))
    out[np.fromiter(likeliest, int, len(likeliest))] = values
    return out


# --- asked as much as the time allows ---

FIRST, AT_ONCE = 8, 16  # questions that are asked in any case, to see how long they take, and of each further turn
LEAST_SECONDS = 2.0  # what is worth beginning with


class TimeLeft:
    """The rest of `seconds` from now on; None: any time."""

    def __init__(self, seconds: float | None) -> None:
        self._until = None if seconds is None else time.monotonic() + max(0.0, seconds)

    def share(self, share: float) -> float | None:
        """Return `time.monotonic()` when this share of what is left is over; None for any time."""
        return None if self._until is None else time.monotonic() + share * (self._until - time.monotonic())

    def allows(self, share: float) -> bool:
        """Return whether this share of what is left is worth beginning with."""
        until = self.share(share)
        return until is None or until - time.monotonic() >= LEAST_SECONDS


def ask_in_time(
    candidates: tuple[Candidate, Candidate],
    questions: Sequence[Case],
    max_tokens: int,
    events: Events,
    time_left: TimeLeft,
    share: float = 1.0,
    what: str = "answers",
) -> tuple[list[Case], tuple[list[Answer], list[Answer]]]:
    """Return the questions that both answered within `share` of the time, in their order, and the answers of each.

    Without a limit each answers all of them, one candidate after the other. With one they take turns, so that what was
    asked of the one was asked of the other whenever the time ends.
    """
    until = time_left.share(share)
    questions = list(questions)
    if until is None:
        answers = [
            c.answers(questions, max_tokens, on_progress(events, f"{c.name} {what}", len(questions)))
            for c in candidates
        ]
        return questions, (answers[0], answers[1])
    order, began = spread_order(len(questions)), time.monotonic()
    asked: dict[int, tuple[Answer, Answer]] = {}
    both = f"{candidates[0].name} and {candidates[1].name}: {what}"
    while len(asked) < len(order):
        chosen = order[len(asked) : len(asked) + (AT_ONCE if asked else FIRST)]
        per_question = (time.monotonic() - began) / max(1, len(asked))
        if asked and time.monotonic() + per_question * len(chosen) > until:
            affordable = max(0, int((until - time.monotonic()) / per_question))
            chosen = chosen[: affordable // FIRST * FIRST]  # they are answered eight at a time
            if not chosen:
                break
        group = [questions[i] for i in chosen]
        base, tuned = (candidate.answers(group, max_tokens, lambda done: None) for candidate in candidates)
        asked |= dict(zip(chosen, zip(base, tuned, strict=True), strict=True))
        events.emit(Progress(what=both, done=len(asked), total=len(order)))
    if len(asked) < len(order):  # what the time had room for is all there is
        events.emit(Progress(what=both, done=len(asked), total=len(asked)))
    kept = sorted(asked)
    return [questions[i] for i in kept], ([asked[i][0] for i in kept], [asked[i][1] for i in kept])


def on_progress(events: Events, what: str, total: int) -> Callable[[int], None]:
    return lambda done: events.emit(Progress(what=what, done=done, total=total))


# --- the two models of a comparison, made ready ---

NUMBER_BYTES = 4  # what is read is compared in fp32


@contextlib.contextmanager
def both_in_llamacpp(base: ModelRef, tuned: ModelRef) -> Iterator[tuple[FileModel, FileModel]]:
    """Serve both models by llama.cpp: in one process where one is the other with an adapter over it."""
    names = (base.name, tuned.name if tuned.name != base.name else f"{tuned.name} (tuned)")
    if tuned.adapts(base) and tuned.adapter is not None:
        ours, theirs = FileModel.pair(tuned.weights, tuned.adapter, names)
        with theirs:
            yield ours, theirs
        return
    with (
        FileModel.open(base.weights, names[0], base.adapter) as ours,
        FileModel.open(tuned.weights, names[1], tuned.adapter) as theirs,
    ):
        yield ours, theirs


def readers(base: ModelRef, tuned: ModelRef) -> tuple[LiveModel, LiveModel] | None:
    """Load both models into this process, which reads a text in one pass where llama.cpp takes one for each token.

    None where half of the memory that is free does not hold them, or where they are not known here: llama.cpp reads
    then.
    """
    try:
        opened = [Pretrained.open(ref.weights) for ref in ((tuned,) if tuned.adapts(base) else (base, tuned))]
        needed = sum(model.part.num_parameters for model in opened) * NUMBER_BYTES
        if needed > memory().available // 2:
            return None
        models = [model.load() for model in opened]
        for ref, source, model in zip((base, tuned)[-len(opened) :], opened, models, strict=True):
            if ref.adapter is not None:
                attach(model, adapter_of_gguf(ref.adapter, source.part))
    except FormatError:
        return None
    with_and_without = tuned.adapts(base)
    return (
        _reader(models[0], opened[0], base.name, bare=with_and_without),
        _reader(models[-1], opened[-1], tuned.name),
    )


def _reader(model: Decoder, source: Pretrained, name: str, bare: bool = False) -> LiveModel:
    return LiveModel(model, source.tokenizer, name, source.part.max_position_embeddings, bare)


# --- a sample of a model in training: the one figure that everybody can judge ---

TOKENS, SECONDS = 64, 6.0  # of a sample, at most
TEMPERATURE, TOP_P, SEED = 0.6, 0.95, 0  # where a text is completed; an answer is the likeliest one


class Samples:
    """Completes or answers one prompt with the live model whenever it is asked to, as an event."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer, context: int, prompt: str, events: Events) -> None:
        self._model, self._tokenizer, self._prompt, self._events = model, tokenizer, prompt, events
        self._context = context
        asker = LiveModel(None, tokenizer, "", context)
        self._ids = asker.prompt(asking(prompt))[-context // 2 :]
        self._temperature = 0.0 if asker.chats else TEMPERATURE

    def take(self, step: int, moment: str) -> None:
        """Emit a sample of the weights as they are. step: of the weights; moment: as of the event."""
        stops = tuple(i for i in (self._tokenizer.eos_id, self._tokenizer.turn_end_id) if i is not None)
        until, ids = time.monotonic() + SECONDS, []
        written = generate(self._model, self._ids, TOKENS, self._temperature, TOP_P, SEED, stops, self._context)
        for token in written:
            ids.append(token)
            if time.monotonic() > until:
                break
        text = self._tokenizer.decode(ids)
        self._events.emit(Sample(step=step, moment=moment, prompt=self._prompt, text=text))
