"""What a trial compares: a model, the same with another prompt or with documents, another setting of the engine."""

import functools
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from settle.evaluate.compare.candidate import Answer, FileModel
from settle.evaluate.compare.cases import Case
from settle.library.facts import read_facts
from settle.library.reference import ModelRef
from settle.library.store import stamp_of
from settle.machine import memory
from settle.model.source import hash_of

SLOTS = 4  # answers at a time: half of the gain of eight, and twice as many chances to stop asking
CACHE_SHARE = 0.25  # of the free memory, for what the slots keep of their prompts


@dataclass(frozen=True)
class Reply(Answer):
    """An answer and what it took. seconds: of wall-clock time, an equal share of what those asked together took.
    probabilities: of each option, where a decision head answered. joules: of energy, 0 where nobody measured it."""

    seconds: float = 0.0
    joules: float = 0.0
    probabilities: Mapping[str, float] = field(default_factory=dict)


class Arm(ABC):
    """One side of a trial.

    key: the same for two arms only where both give the same answer to the same question. at_once: questions that it is
    best asked together. num_bytes: of memory while it is loaded, 0 where that is not known. seconds: that an answer is
    expected to take, or None.
    """

    name: str
    key: str
    at_once: int = 1
    num_bytes: int = 0
    seconds: float | None = None

    @property
    def engine(self) -> "Arm":
        """Whoever loads what answers: arms that share it are loaded once."""
        return self

    def asked(self, case: Case) -> Case:
        """The question as it is really asked. Raises SettleError."""
        return case

    def load(self) -> None:  # noqa: B027 - most need not
        """Makes it ready, so that the first answer takes no longer than the others. Raises SettleError."""

    @abstractmethod
    def make(self, cases: Sequence[Case]) -> Sequence[Answer]:
        """An answer to each case, as `asked` returned it. Raises SettleError."""

    def close(self) -> None:  # noqa: B027 - most need not
        """Unloads it; `make` loads it again. Calling it twice is harmless."""


class ModelArm(Arm):
    """A GGUF file in llama.cpp, with an adapter over it or without, answering with the likeliest tokens.

    context: tokens of a prompt and its answer; max_tokens: of an answer. name: the model's if not given.
    """

    def __init__(
        self, ref: ModelRef, context: int, max_tokens: int, name: str | None = None, seconds: float | None = None
    ) -> None:
        self.name, self.seconds = name or ref.name, seconds
        self._ref, self._context, self._max_tokens = ref, context, max_tokens
        self._model: FileModel | None = None
        files = [p for p in (ref.weights, ref.adapter) if p is not None]
        hashes = [_hash(p, stamp_of(p)) for p in files]
        self.key = digest([hashes, version("xllamacpp"), max_tokens])
        per_slot = max(1, read_facts(ref.weights).bytes_per_token * context)
        self.at_once = max(1, min(SLOTS, int(CACHE_SHARE * memory().available) // per_slot))
        self.num_bytes = sum(p.stat().st_size for p in files) + self.at_once * per_slot

    def load(self) -> None:
        if self._model is None:
            ref = self._ref
            self._model = FileModel.open(ref.weights, ref.name, ref.adapter, self._context, self.at_once)

    def make(self, cases: Sequence[Case]) -> Sequence[Answer]:
        self.load()
        assert self._model is not None
        return self._model.answers(cases, self._max_tokens, lambda done: None)

    def close(self) -> None:
        model, self._model = self._model, None
        if model is not None:
            model.__exit__()


class Rewritten(Arm):
    """An arm that is asked otherwise: with an instruction, with examples, with passages that were retrieved.

    rewrite: from a case to the case that is asked instead; what the other arm answered to the same words is known.
    """

    def __init__(self, arm: Arm, name: str, rewrite: Callable[[Case], Case], seconds: float | None = None) -> None:
        self.name, self.seconds = name, seconds
        self._arm, self._rewrite = arm, rewrite
        self.key, self.at_once, self.num_bytes = arm.key, arm.at_once, arm.num_bytes

    @property
    def engine(self) -> Arm:
        return self._arm.engine

    def asked(self, case: Case) -> Case:
        return self._arm.asked(self._rewrite(case))

    def load(self) -> None:
        self._arm.load()

    def make(self, cases: Sequence[Case]) -> Sequence[Answer]:
        return self._arm.make(cases)

    def close(self) -> None:
        self._arm.close()


def as_reply(answer: Answer, seconds: float) -> Reply:
    """The answer with its share of the time, where it does not know its own."""
    return answer if isinstance(answer, Reply) else Reply(**asdict(answer), seconds=seconds)


def question_key(case: Case) -> str:
    """The same for questions of the same words."""
    return digest([case.messages, case.tools, case.prompt])


def digest(value: object) -> str:
    """A short hash of anything that JSON can hold."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:24]


@functools.lru_cache(maxsize=64)
def _hash(path: Path, stamp: str) -> str:
    """The hash of a file, as long as it is not written to."""
    return hash_of(path)
