"""What is compared: a candidate answers questions; a model also says how likely it holds a text to be.

Legend: P positions, V vocabulary.
"""

import concurrent.futures
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from settle.base.chat_template import ChatTemplate
from settle.base.errors import UsageError
from settle.base.tokenizer import Tokenizer
from settle.evaluate.compare.cases import Case
from settle.infer.engine import Engine
from settle.infer.live_sampling import generate, logprobs
from settle.model.decoder import Decoder

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

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of a text, opened as the model expects a text to be."""
        ...


class Candidate(Tokenizes, Protocol):
    """Whatever answers questions and is compared by its answers: a model, a model with documents, or with a prompt.

    name: for people. chats: whether it takes turns by a chat template.
    """

    name: str
    chats: bool

    def answers(
        self, cases: Sequence[Case], max_tokens: int, on_progress: OnProgress, temperature: float = 0.0
    ) -> list[Answer]:
        """Return an answer to each question; the likeliest one unless `temperature` is given.

        on_progress: called with how many there are. Raises UsageError for several turns without a chat template.
        """
        ...


class Model(ABC):
    """A candidate that also says how likely it holds a text to be.

    context: tokens of a question and its answer together. together: texts that are best read at the same time.
    """

    name: str
    chats: bool
    context: int
    together: int = 1

    @abstractmethod
    def prompt(self, case: Case) -> list[int]:
        """Return the ids of a question. Raises UsageError for several turns where there is no chat template."""

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Do as `Candidate.tokenize`."""

    @abstractmethod
    def answers(
        self, cases: Sequence[Case], max_tokens: int, on_progress: OnProgress, temperature: float = 0.0
    ) -> list[Answer]:
        """Do as `Candidate.answers`."""

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
        with concurrent.futures.ThreadPoolExecutor(self.together) as pool:
            try:
                for result in pool.map(work, range(number)):
                    results.append(result)
                    on_progress(len(results))
            except KeyboardInterrupt:
                self._engine.close()  # the answers in flight end with it; they would be waited for
                raise
            finally:
                pool.shutdown(cancel_futures=True)
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
