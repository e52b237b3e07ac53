"""What an experiment compares: a model, the same with another prompt or with documents, another setting of a set-up."""

import contextlib
import functools
import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import TypeAdapter

from settle.base.files import JsonObject, append_lines, home, read_lines
from settle.evaluate.compare.candidate import Answer, FileModel
from settle.evaluate.compare.cases import Case
from settle.library.facts import read_facts
from settle.library.reference import ModelRef
from settle.library.store import stamp_of
from settle.machine import memory
from settle.model.source import hash_of

SLOTS = 4  # answers at a time: half of the gain of eight, and twice as many chances to stop asking
CACHE_SHARE = 0.25  # of the free memory, for what the slots keep of their prompts

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Reply(Answer):
    """An answer with its cost."""

    seconds: float = 0.0  # wall-clock time; of answers made together, an equal share
    joules: float = 0.0  # energy, 0 where it was not measured
    probabilities: Mapping[str, float] = field(default_factory=dict)  # of each option, where a decision head answered


class Arm(ABC, Generic[Item, Value]):
    """One side of an experiment."""

    name: str  # shown to the user
    key: str = ""  # equal for two arms only where both give the same value for the same item
    at_once: int = 1  # items that are best measured together
    num_bytes: int = 0  # memory while it is loaded, 0 where that is not known
    seconds: float | None = None  # expected time of an item, None where nobody knows

    @property
    def engine(self) -> object:
        """What is loaded: arms that share it are loaded once."""
        return self

    def asked(self, item: Item) -> Item:
        """Return the item as it is really asked. Raises SettleError."""
        return item

    def load(self) -> None:  # noqa: B027 - most need not
        """Make it ready, so that the first item takes no longer than the others. Raises SettleError."""

    @abstractmethod
    def measure(self, item: Item) -> Value:
        """Measure one item, as `asked` returned it. Raises SettleError."""

    def measure_all(self, items: Sequence[Item]) -> Sequence[Value]:
        """Measure items, at most `at_once` of them, together. Raises SettleError."""
        return [self.measure(item) for item in items]

    def close(self) -> None:  # noqa: B027 - most need not
        """Unload it; `load` makes it ready again. Calling it twice is harmless."""


class ModelArm(Arm[Case, Reply]):
    """A GGUF file in llama.cpp, with an adapter over it or without, answering with the likeliest tokens.

    Attributes:
        context: tokens of a prompt and its answer.
        max_tokens: tokens of an answer.
        name: the model's if not given.
    """

    def __init__(
        self, ref: ModelRef, context: int, max_tokens: int, name: str | None = None, seconds: float | None = None
    ) -> None:
        self.name, self.seconds = name or ref.name, seconds
        self._ref, self._context, self._max_tokens = ref, context, max_tokens
        self._model: FileModel | None = None
        self.key = digest([model_hashes(ref), version("xllamacpp"), max_tokens])
        per_slot = max(1, read_facts(ref.weights).bytes_per_token * context)
        self.at_once = max(1, min(SLOTS, int(CACHE_SHARE * memory().available) // per_slot))
        files = [p for p in (ref.weights, ref.adapter) if p is not None]
        self.num_bytes = sum(p.stat().st_size for p in files) + self.at_once * per_slot

    def load(self) -> None:
        self._loaded()

    def _loaded(self) -> FileModel:
        if self._model is None:
            ref = self._ref
            self._model = FileModel.open(ref.weights, ref.name, ref.adapter, self._context, self.at_once)
        return self._model

    def measure(self, item: Case) -> Reply:
        return self.measure_all([item])[0]

    def measure_all(self, items: Sequence[Case]) -> list[Reply]:
        model, began = self._loaded(), time.monotonic()
        answers = model.answers(items, self._max_tokens, lambda done: None)
        seconds = (time.monotonic() - began) / len(items)
        return [Reply(**asdict(answer), seconds=seconds) for answer in answers]

    def close(self) -> None:
        model, self._model = self._model, None
        if model is not None:
            model.__exit__()


class Rewritten(Arm[Case, Reply]):
    """An arm that is asked otherwise: with an instruction, with examples, with passages that were retrieved.

    Attributes:
        rewrite: from a case to the case that is asked instead; what the other arm answered to that is known.
    """

    def __init__(
        self, arm: Arm[Case, Reply], name: str, rewrite: Callable[[Case], Case], seconds: float | None = None
    ) -> None:
        self.name, self.seconds = name, seconds
        self._arm, self._rewrite = arm, rewrite
        self.key, self.at_once, self.num_bytes = arm.key, arm.at_once, arm.num_bytes

    @property
    def engine(self) -> object:
        return self._arm.engine

    def asked(self, item: Case) -> Case:
        return self._arm.asked(self._rewrite(item))

    def load(self) -> None:
        self._arm.load()

    def measure(self, item: Case) -> Reply:
        return self._arm.measure(item)

    def measure_all(self, items: Sequence[Case]) -> Sequence[Reply]:
        return self._arm.measure_all(items)

    def close(self) -> None:
        self._arm.close()


def question_key(case: Case) -> str:
    """Return a key that is equal for questions of the same words."""
    return digest([case.messages, case.tools, case.prompt])


def digest(value: object) -> str:
    """Return a short hash of anything that JSON can hold."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:24]


def model_hashes(ref: ModelRef) -> list[str]:
    """Return the hashes of a model's files."""
    return [_hash(p, stamp_of(p)) for p in (ref.weights, ref.adapter) if p is not None]


@functools.lru_cache(maxsize=64)
def _hash(path: Path, stamp: str) -> str:
    """Return the hash of a file, remembered as long as it is not written to."""
    return hash_of(path)


CONTINUES = "and run the same command again: what was measured is kept"


class MeasureRecord(ABC, Generic[Value]):
    """A file of measurements, one JSON line each, which only grows. A damaged line is passed over and made again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known: dict[str, Value] = {}  # by key
        for line in read_lines(path):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                key, value = self._read(line)
                self.known[key] = value

    def add(self, measured: Mapping[str, Value]) -> None:
        """Keep measurements. Raises ResourceError when they cannot be written."""
        self.known |= measured
        append_lines(self._path, [self._line(key, value) for key, value in measured.items()], then=CONTINUES)

    @abstractmethod
    def _read(self, line: JsonObject) -> tuple[str, Value]:
        """Return what a line holds. Raises ValueError, KeyError, TypeError for what is not one of this record."""

    @abstractmethod
    def _line(self, key: str, value: Value) -> JsonObject: ...


class ReplyRecord(MeasureRecord[Reply]):
    """The replies of one arm, by the key of the question."""

    def __init__(self, arm_key: str) -> None:
        super().__init__(home() / "trials" / f"{digest(arm_key)}.jsonl")

    @property
    def seconds(self) -> float | None:
        """Mean time of an answer, None where none is known."""
        known = [reply.seconds for reply in self.known.values() if reply.seconds > 0]
        return sum(known) / len(known) if known else None

    def _read(self, line: JsonObject) -> tuple[str, Reply]:
        return str(line["question"]), _reply().validate_python(line)

    def _line(self, key: str, value: Reply) -> JsonObject:
        return {"question": key, **asdict(value)}


@functools.cache
def _reply() -> TypeAdapter[Reply]:
    return TypeAdapter(Reply)


class ProofRecord(MeasureRecord[float]):
    """The measurements of one part and side of an A/B, by the place of the item; all of an A/B are in one file."""

    def __init__(self, path: Path, part: str, side: str) -> None:
        self._part, self._side = part, side
        super().__init__(path)

    def _read(self, line: JsonObject) -> tuple[str, float]:
        if (line["part"], line["side"]) != (self._part, self._side):
            raise ValueError("of another part or side")
        return str(int(line["item"])), float(line["value"])

    def _line(self, key: str, value: float) -> JsonObject:
        return {"part": self._part, "side": self._side, "item": int(key), "value": value}
