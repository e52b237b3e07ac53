"""The ways to answer better, and what answers in them: a model in llama.cpp or a head over a closed set of answers."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Self

from settle.base.errors import UsageError
from settle.base.files import write_atomic
from settle.data.decisions.questions import Option, Question
from settle.evaluate.compare.candidate import without_thoughts
from settle.evaluate.compare.cases import Case
from settle.evaluate.footprint import peak_bytes
from settle.experiment.arm import Arm, Reply, ReplyRecord, Rewritten, digest, question_key
from settle.infer.client import Fence, Turn
from settle.infer.decider import Decider
from settle.infer.engine import Engine
from settle.jobs.choose.documents import Found
from settle.library.facts import read_facts
from settle.library.reference import ModelRef
from settle.library.store import stamp_of
from settle.machine.power import EnergyMeter

CONTEXT = 2048  # tokens that a question takes, with all that is put before it and its answer
NAME, INSTRUCTIONS = "answer", "Which of these is the answer?"  # of the one question of a decision model
ZERO_SHOT, PROMPT, DOCUMENTS, DECIDE, TUNE, TUNE_DOCUMENTS = (
    "zero-shot",
    "prompt",
    "documents",
    "decide",
    "tune",
    "documents + tune",
)
# by what has to be made and kept up: nothing, a text, an index, a head of one token, weights, both
CHEAPEST_FIRST = (ZERO_SHOT, PROMPT, DOCUMENTS, DECIDE, TUNE, TUNE_DOCUMENTS)
WITH_DOCUMENTS = (DOCUMENTS, TUNE_DOCUMENTS)
Passages = Mapping[int, Found]  # what a question is answered from, by the number of its case


@dataclass(frozen=True)
class Setup:
    """What is put before a question."""

    system: str = ""  # instructions
    shots: tuple[tuple[str, str], ...] = ()  # questions with their answers, which the model sees as earlier turns
    grammar: str = ""  # that the whole answer is held to, in GBNF, or ""

    def over(self, model: "AnsweringModel", name: str, passages: Passages | None = None) -> Rewritten:
        """Return the model asked in this setup, with the passages of each case."""
        held = model.held_to(self.grammar) if self.grammar else model

        def asked(case: Case) -> Case:
            found = (passages or {}).get(case.number)
            return self.asked(case, found.passages if found else ())

        return Rewritten(held, name, asked)

    def asked(self, case: Case, passages: Sequence[str] = ()) -> Case:
        """Return the case with everything that the model reads as its messages."""
        turns = [{"role": role, "content": text} for role, text in self.turns(case, passages)]
        return replace(case, messages=tuple(turns), prompt=None)

    def turns(self, case: Case, passages: Sequence[str] = ()) -> list[tuple[str, str]]:
        """Return (role, text) of everything that the model reads."""
        own = "\n\n".join(str(m["content"]) for m in case.messages if m["role"] == "system")
        system = "\n\n".join(filter(None, (own, self.system)))
        turns = [("system", system)] if system else []
        for question, answer in self.shots:
            turns += [("user", question), ("assistant", answer)]
        turns += [(str(m["role"]), str(m["content"])) for m in case.messages if m["role"] != "system"]
        role, question = turns[-1]
        return [*turns[:-1], (role, with_passages(question, passages))]

    @property
    def length(self) -> int:
        """Letters before every question."""
        return len(self.system) + sum(len(q) + len(a) for q, a in self.shots)


def with_passages(question: str, passages: Sequence[str]) -> str:
    """Put the passages that may answer a question before it, where there are any."""
    if not passages:
        return question
    read = "\n\n".join(f"[{number}] {passage}" for number, passage in enumerate(passages, 1))
    return f"Passages:\n\n{read}\n\nQuestion: {question}"


class AnsweringModel(Arm[Case, Reply]):
    """A model that answers in a process of its own. process_peak: the most memory of that process so far, in bytes."""

    def __init__(self, ref: ModelRef) -> None:
        self.name, self.ref, self.process_peak = ref.name, ref, 0

    def held_to(self, grammar: str) -> "AnsweringModel":
        """Return an arm of the same process whose answers have the form of a grammar, in GBNF."""
        raise NotImplementedError


class ModelInTurns(AnsweringModel):
    """A model in llama.cpp that answers messages one by one, with the likeliest tokens.

    It is loaded when it is first asked. Use it as a context manager.

    Attributes:
        max_tokens: of an answer.
        grammar: of an answer, in GBNF.
        shares: another one of the same files, whose process answers for both.
    """

    def __init__(
        self,
        ref: ModelRef,
        max_tokens: int = 1,
        threads: int | None = None,
        grammar: str = "",
        shares: "ModelInTurns | None" = None,
    ) -> None:
        super().__init__(ref)
        self.max_tokens = max_tokens
        self._threads, self._grammar = threads, grammar
        self._loader: ModelInTurns = shares._loader if shares else self
        self._opened: tuple[Engine, Fence] | None = None
        files = [p for p in (ref.weights, ref.adapter) if p is not None]
        stamps = [[str(p.resolve()), stamp_of(p)] for p in files]
        self.key = digest([stamps, version("xllamacpp"), max_tokens, CONTEXT, grammar])
        cache = read_facts(ref.weights).bytes_per_token * CONTEXT
        self.num_bytes = sum(p.stat().st_size for p in files) + cache

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def limited(self, max_tokens: int) -> "ModelInTurns":
        """Return an arm of the same process with another limit of the answers."""
        return ModelInTurns(self.ref, max_tokens, self._threads, self._grammar, shares=self)

    def held_to(self, grammar: str) -> "ModelInTurns":
        return ModelInTurns(self.ref, self.max_tokens, self._threads, grammar, shares=self)

    @property
    def engine(self) -> object:
        return self._loader

    def load(self) -> None:
        self._loader.llama()

    def close(self) -> None:
        opened, self._loader._opened = self._loader._opened, None
        if opened is not None:
            opened[0].close()

    def llama(self) -> Engine:
        """Return the process, started if need be.

        Raises UsageError for a model that takes no turns, and what `Engine` raises.
        """
        return self._loader._open()[0]

    def _open(self) -> tuple[Engine, Fence]:
        if self._opened is None:
            llama = Engine(self.ref.weights, CONTEXT, adapter=self.ref.adapter, threads=self._threads)
            if not llama.takes_turns:
                raise UsageError(
                    f"{self.ref.name} has no chat template, so it takes neither instructions nor examples as turns",
                    "give a model that chats, such as smollm2",
                )
            llama.start()
            self._opened = llama, Fence(llama, enable_thinking=False)
        return self._opened

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return self.llama().plain(text)

    def measure(self, item: Case) -> Reply:
        llama = self.llama()
        began, meter = time.monotonic(), EnergyMeter()
        prompt = self._prompt(item)
        room = min(self.max_tokens, llama.context - len(prompt))
        if room < 1:
            return Reply("", asked=False, read=len(prompt))
        answer = llama.answer(prompt, room, grammar=self._grammar or None)
        self.process_peak = max(self.process_peak, peak_bytes(llama.pid or 0))
        return Reply(
            text=without_thoughts(answer.text),
            ended=answer.ended,
            read=len(prompt),
            written=answer.tokens,
            seconds=time.monotonic() - began,
            joules=meter.read().joules,
        )

    def _prompt(self, case: Case) -> list[int]:
        """Return the ids of the messages. No text in them can end its turn, but where tools are rendered with them."""
        llama, fence = self._loader._open()
        if case.tools:
            return llama.turns(case.messages, case.tools)
        return fence.ids([Turn(str(m["role"]), [str(m["content"])]) for m in case.messages])


class DecisionModel(AnsweringModel):
    """A decision model in llama.cpp that is asked which of the labels answers a question."""

    def __init__(self, ref: ModelRef, labels: Sequence[str], threads: int | None = None) -> None:
        super().__init__(ref)
        self._question, self._threads = question(labels), threads
        self._decider: Decider | None = None
        self.key = digest([str(ref.weights.resolve()), stamp_of(ref.weights), version("xllamacpp"), list(labels)])
        self.num_bytes = ref.weights.stat().st_size

    def held_to(self, grammar: str) -> "DecisionModel":
        """Return the model itself: it answers with one of the labels, whatever the grammar."""
        return self

    def load(self) -> None:
        self._loaded()

    def _loaded(self) -> Decider:
        if self._decider is None:
            decider = Decider(self.ref.weights, threads=self._threads)
            decider.start()
            self._decider = decider
        return self._decider

    def close(self) -> None:
        decider, self._decider = self._decider, None
        if decider is not None:
            decider.close()

    def measure(self, item: Case) -> Reply:
        decider = self._loaded()
        began, meter = time.monotonic(), EnergyMeter()
        answer = decider.decide(state_of(item), [self._question])[0]
        self.process_peak = max(self.process_peak, peak_bytes(decider.pid or 0))
        probabilities = dict(zip(self._question.keys, answer.probabilities, strict=True))
        seconds, joules = time.monotonic() - began, meter.read().joules
        return Reply(answer.key, seconds=seconds, probabilities=probabilities, joules=joules)


def question(labels: Sequence[str]) -> Question:
    """Return the one question, with the labels as its options in a fixed order."""
    return Question("choice", INSTRUCTIONS, tuple(Option(label) for label in sorted(labels)))


def state_of(case: Case) -> str:
    """Return what is decided about: the user's turns."""
    return "\n\n".join(str(m["content"]) for m in case.messages if m["role"] != "system")


def write_decisions(path: Path, cases: Sequence[Case], labels: Sequence[str]) -> None:
    """Write examples as rows of decisions, without those whose answer is none of the labels."""
    asked = {NAME: question(labels).to_json()}
    rows = [
        {"state": state_of(case), "questions": asked, "targets": {NAME: case.reference.strip()}}
        for case in cases
        if case.reference.strip() in labels
    ]
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def answers(arm: Arm[Case, Reply], cases: Sequence[Case], on_progress: Callable[[int], object] = int) -> list[Reply]:
    """Return an answer to each case; what the arm answered before is known.

    on_progress: called with how many there are. Raises SettleError.
    """
    record, replies = ReplyRecord(arm.key), list[Reply]()
    for case in cases:
        asked = arm.asked(case)
        key = question_key(asked)
        reply = record.known.get(key)
        if reply is None:
            reply = arm.measure(asked)
            record.add({key: reply})
        replies.append(reply)
        on_progress(len(replies))
    return replies


# --- ways ---


@dataclass(frozen=True)
class Built:
    """A way that can be asked."""

    name: str
    model: AnsweringModel
    setup: Setup
    command: str  # makes it ready to be used
    build_seconds: float = 0.0  # that it took to make
    search_seconds: float = 0.0  # of finding passages, a question
    change_seconds: float | None = None  # until a changed fact counts, None where it was not measured
    change_note: str = ""  # how, for the user
    about: str = ""  # what it is


@dataclass(frozen=True)
class Measured:
    """A way with its scores and replies on the test questions, in their order."""

    way: Built
    scores: Sequence[float]
    replies: Sequence[Reply]
    peak: int = 0  # the most memory of llama.cpp's process, in bytes

    @property
    def name(self) -> str:
        return self.way.name

    @property
    def score(self) -> float:
        return sum(self.scores) / len(self.scores)

    @property
    def seconds(self) -> float:
        """Mean time of an answer."""
        return sum(r.seconds for r in self.replies) / len(self.replies) + self.way.search_seconds

    @property
    def tokens(self) -> float:
        """Mean tokens of an answer, read and written."""
        return sum(r.read + r.written for r in self.replies) / len(self.replies)

    @property
    def joules(self) -> float:
        """Mean energy of an answer."""
        return sum(r.joules for r in self.replies) / len(self.replies)

    @property
    def cut(self) -> int:
        """Number of answers that were stopped for their length."""
        return sum(not r.ended for r in self.replies)

    @property
    def unasked(self) -> int:
        """Number of questions that did not fit into the context."""
        return sum(not r.asked for r in self.replies)


@dataclass(frozen=True)
class Failed:
    """A way that could not be built or asked, and why."""

    name: str
    why: str


def possible_ways(has_documents: bool, is_closed: bool) -> tuple[str, ...]:
    """Return the ways that there are with and without documents, for a closed set of answers and for others."""
    return tuple(
        way for way in CHEAPEST_FIRST if (has_documents or way not in WITH_DOCUMENTS) and (is_closed or way != DECIDE)
    )
