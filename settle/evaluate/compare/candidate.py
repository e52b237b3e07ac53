"""A model that is compared: it answers, and says how likely it holds a text to be. P positions, V vocabulary."""

import concurrent.futures
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from settle.base.chat_template import ChatTemplate
from settle.base.errors import UsageError
from settle.evaluate.compare.cases import Case
from settle.infer.engine import Engine

SLOTS = 8  # answers at the same time: a step of eight costs little more than a step of one
TOP = 256  # likeliest tokens that llama.cpp is asked for at each position; what is left is spread evenly
CONTEXT = 2048  # tokens that one question and its answer may take
Told = Callable[[int], None]


@dataclass(frozen=True)
class Answer:
    """text: what was said, thoughts aside. ended: by the model itself, and not for its length. asked: whether the
    question fitted into the context at all."""

    text: str
    ended: bool = True
    asked: bool = True


@dataclass(frozen=True)
class Reading:
    """How likely a model held a text to be, token by token.

    logprobs: (P,), natural, of the tokens that came. spread(i): (V,), of every token that could have come there.
    """

    logprobs: np.ndarray
    spread: Callable[[int], np.ndarray]


class Contender(ABC):
    """The contract. name: for people; chats: whether it takes turns by a chat template; context: tokens of a question
    and its answer together; together: texts that are best read at the same time.
    """

    name: str
    chats: bool
    context: int
    together: int = 1

    @abstractmethod
    def prompt(self, case: Case) -> list[int]:
        """Ids of a question. Raises UsageError for several turns where there is no chat template."""

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Ids of a text, opened as the model expects a text to be."""

    @abstractmethod
    def answers(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, told: Told, temperature: float = 0.0
    ) -> list[Answer]:
        """An answer to each; the likeliest one unless `temperature` is given. told: called with how many are there."""

    @abstractmethod
    def read(self, texts: Sequence[Sequence[int]], begin: Sequence[int]) -> list[Reading]:
        """Texts (ids) read from position `begin` on, 1 at least: what stands before is known."""


class FileContender(Contender):
    """A GGUF file in llama.cpp, several questions at a time. `pair` is a base and an adapter over it in one process.

    Use it as a context manager.
    """

    together = SLOTS

    def __init__(self, engine: Engine, name: str, adapter_scale: float = 1.0) -> None:
        self._engine = engine
        self._adapter_scale = adapter_scale
        self.name = name
        self.chats = engine.takes_turns
        self.context = engine.context

    @classmethod
    def open(cls, path: Path, name: str, adapter: Path | None = None, context: int = CONTEXT) -> "FileContender":
        """A file, with an adapter over it or without. Raises what `Engine` raises."""
        engine = Engine(path, context, adapter=adapter, slots=SLOTS)
        engine.start()
        return cls(engine, name)

    @classmethod
    def pair(
        cls, path: Path, adapter: Path, names: tuple[str, str], context: int = CONTEXT
    ) -> tuple["FileContender", "FileContender"]:
        """The model of a file without its adapter and with it, both by one child: the weights are there once."""
        tuned = cls.open(path, names[1], adapter, context)
        return cls(tuned._engine, names[0], 0.0), tuned

    def __enter__(self) -> "FileContender":
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def prompt(self, case: Case) -> list[int]:
        return self._engine.turns(case.messages, case.tools) if self.chats else self._engine.plain(_bare(self, case))

    def tokenize(self, text: str) -> list[int]:
        return self._engine.plain(text)

    def answers(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, told: Told, temperature: float = 0.0
    ) -> list[Answer]:
        def answer(number: int) -> Answer:
            room = self.context - len(prompts[number])
            if room < 1:
                return Answer("", asked=False)
            text, ended = self._engine.answer(prompts[number], min(max_tokens, room), temperature, seed=number)
            return Answer(without_thoughts(text), ended)

        return self._each(answer, len(prompts), told)

    def read(self, texts: Sequence[Sequence[int]], begin: Sequence[int]) -> list[Reading]:
        return self._each(lambda number: self._read(list(texts[number]), begin[number]), len(texts), lambda done: None)

    def _read(self, ids: list[int], begin: int) -> Reading:
        rows = []
        for at in range(begin, len(ids)):
            row = self._engine.next_token_logprobs(ids[:at], TOP)
            # seldom: the token that came is none of the likeliest
            rows.append(row if ids[at] in row else self._engine.next_token_logprobs(ids[:at]))
        logprobs = np.array([row[token] for row, token in zip(rows, ids[begin:], strict=True)])
        return Reading(logprobs, lambda i: _spread(rows[i], self._engine.num_vocab))

    def _each(self, work: Callable[[int], Any], number: int, told: Told) -> list[Any]:
        self._engine.adapter_scale = self._adapter_scale
        results = []
        with concurrent.futures.ThreadPoolExecutor(SLOTS) as pool:
            try:
                for result in pool.map(work, range(number)):
                    results.append(result)
                    told(len(results))
            finally:
                pool.shutdown(cancel_futures=True)
        return results


class LiveContender(Contender):
    """A model in this process: fast to read, and asked without a cache, which is for short answers only.

    bare: without the adapters that are beside its linears.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, context: int, bare: bool = False) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._alone = model.without_adapters if bare else contextlib.nullcontext
        self.name, self.context = name, context
        self.chats = bool(tokenizer.chat_template)

    def prompt(self, case: Case) -> list[int]:
        if not self.chats:
            return self.tokenize(_bare(self, case))
        template = ChatTemplate(self._tokenizer.chat_template, self._token("bos_id"), self._token("eos_id"))
        text = template.render(case.messages, case.tools, add_generation_prompt=True)
        return [int(i) for i in self._tokenizer.encode(text, True)]

    def tokenize(self, text: str) -> list[int]:
        ids = [int(i) for i in self._tokenizer.encode(text)]
        return [self._tokenizer.bos_id, *ids] if self._tokenizer.add_bos or not ids else ids

    def answers(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, told: Told, temperature: float = 0.0
    ) -> list[Answer]:
        from settle.infer.live.sample import generate

        stops = (self._tokenizer.eos_id, self._tokenizer.turn_end_id)
        out = []
        for number, prompt in enumerate(prompts):
            room = min(max_tokens, self.context - len(prompt))
            with self._alone():
                ids = list(generate(self._model, prompt, room, temperature, 1.0, number, stops)) if room > 0 else []
            text = without_thoughts(self._tokenizer.decode(ids))
            out.append(Answer(text, ended=len(ids) < room, asked=room > 0))
            told(number + 1)
        return out

    def read(self, texts: Sequence[Sequence[int]], begin: Sequence[int]) -> list[Reading]:
        from settle.infer.live.sample import logprobs

        out = []
        for ids, first in zip(texts, begin, strict=True):
            with self._alone():
                rows = logprobs(self._model, ids, range(first - 1, len(ids) - 1)).cpu().numpy()
            out.append(Reading(rows[np.arange(len(rows)), list(ids[first:])], rows.__getitem__))
        return out

    def _token(self, which: str) -> str:
        return str(self._tokenizer.tokens[getattr(self._tokenizer, which)])


def _bare(model: Contender, case: Case) -> str:
    """The text that a model without a chat template is given to go on with."""
    if case.prompt is None:
        raise UsageError(
            f"{model.name} has no chat template, and row {case.number} has several turns",
            "give rows of a prompt and a completion, or a model with a template",
        )
    return case.prompt


def without_thoughts(text: str) -> str:
    """An answer without the thoughts that a reasoning model writes before it."""
    _, mark, after = text.partition("</think>")
    if mark:
        return after.strip()
    return "" if text.lstrip().startswith("<think>") else text.strip()


def _spread(likeliest: Mapping[int, float], num_vocab: int) -> np.ndarray:
    """Log-probabilities (V,) from those of the likeliest tokens: the others share what is left evenly."""
    values = np.fromiter(likeliest.values(), float, len(likeliest))
    left = max(1.0 - float(np.exp(values).sum()), 1e-9)
    out = np.full(num_vocab, np.log(left / max(1, num_vocab - len(likeliest))))
    out[np.fromiter(likeliest, int, len(likeliest))] = values
    return out
