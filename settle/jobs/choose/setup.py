"""What answers: a model with what is put before a question, and its answers, each made once and kept on the disk."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from settle.base.errors import ResourceError, UsageError
from settle.base.run import parse_json
from settle.evaluate.compare.candidate import without_thoughts
from settle.evaluate.compare.cases import Case
from settle.evaluate.footprint import peak_bytes
from settle.infer.engine import Engine
from settle.infer.safe_prompt import Fence, Turn
from settle.library.reference import ModelRef
from settle.library.store import stamp_of
from settle.machine.power import EnergyMeter

CONTEXT = 2048  # tokens that a question takes, with all that is put before it and its answer
Passages = Mapping[int, Sequence[str]]  # of each case, by its number
NO_PASSAGES: Passages = {}


@dataclass(frozen=True)
class Setup:
    """A way to answer. system: instructions before every question. shots: questions with their answers that the model
    sees as earlier turns. grammar: of the answer, in GBNF."""

    system: str = ""
    shots: tuple[tuple[str, str], ...] = ()
    grammar: str = ""

    def turns(self, case: Case, passages: Sequence[str] = ()) -> list[tuple[str, str]]:
        """(role, text) of everything that the model reads."""
        own = "\n\n".join(str(m["content"]) for m in case.messages if m["role"] == "system")
        system = "\n\n".join(filter(None, (own, self.system)))
        turns = [("system", system)] if system else []
        for question, answer in self.shots:
            turns += [("user", question), ("assistant", answer)]
        turns += [(str(m["role"]), str(m["content"])) for m in case.messages if m["role"] != "system"]
        role, question = turns[-1]
        return [*turns[:-1], (role, with_passages(question, passages))]


def with_passages(question: str, passages: Sequence[str]) -> str:
    """A question behind the passages that may answer it; as it is where there are none."""
    if not passages:
        return question
    read = "\n\n".join(f"[{number}] {passage}" for number, passage in enumerate(passages, 1))
    return f"Passages:\n\n{read}\n\nQuestion: {question}"


@dataclass(frozen=True)
class Reply:
    """An answer and what it took. asked: whether the question fitted into the context. seconds: from the question to
    the end of the answer, without the search for passages; read, written: tokens of the prompt and of the answer."""

    text: str
    ended: bool = True
    asked: bool = True
    seconds: float = 0.0
    read: int = 0
    written: int = 0
    joules: float = 0.0


class LoadedModel:
    """A model in llama.cpp, loaded when it is first asked. Use it as a context manager.

    peak: the most memory of llama.cpp's process so far, in bytes.
    """

    def __init__(self, ref: ModelRef, threads: int | None = None) -> None:
        self.ref, self.peak = ref, 0
        self._threads = threads
        self._engine: Engine | None = None
        self._fence: Fence | None = None

    def __enter__(self) -> "LoadedModel":
        return self

    def __exit__(self, *_: object) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    @property
    def engine(self) -> Engine:
        """Raises UsageError for a model that takes no turns, and what `Engine` raises."""
        if self._engine is None:
            engine = Engine(self.ref.weights, CONTEXT, adapter=self.ref.adapter, threads=self._threads)
            if not engine.takes_turns:
                raise UsageError(
                    f"{self.ref.name} has no chat template, so it takes neither instructions nor examples as turns",
                    "give a model that chats, such as smollm2",
                )
            engine.start()
            self._engine = engine
            self._fence = Fence(engine, enable_thinking=False)
        return self._engine

    def prompt(self, turns: Sequence[tuple[str, str]], tools: Sequence[Mapping[str, object]]) -> list[int]:
        """Ids of a prompt. No text in it can end its turn, but where tools are rendered with it."""
        engine = self.engine
        if tools:
            return engine.turns([{"role": role, "content": text} for role, text in turns], tools)
        assert self._fence is not None
        return self._fence.ids([Turn(role, [text]) for role, text in turns])

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text."""
        return self.engine.plain(text)

    def note_memory(self) -> None:
        self.peak = max(self.peak, peak_bytes(self.engine.pid or 0))


class Answerer:
    """A model that answers in some setup, at most `max_tokens` tokens. folder: where answers are kept. peak: the most
    memory of llama.cpp's process while it answered, in bytes."""

    def __init__(self, model: LoadedModel, setup: Setup, max_tokens: int, folder: Path) -> None:
        self._model, self._setup, self._max_tokens = model, setup, max_tokens
        self._path = folder / f"{self._key()}.jsonl"
        self._known: dict[str, Reply] = {}
        self.peak = 0
        for question, reply, peak in _read(self._path):
            self._known[question] = reply
            self.peak = max(self.peak, peak)

    def answers(
        self, cases: Sequence[Case], passages: Passages = NO_PASSAGES, on_progress: Callable[[int], object] = int
    ) -> list[Reply]:
        """An answer to each case, the likeliest one. passages: by the case's number. on_progress: called with how many
        there are. Raises what `Engine` raises, and ResourceError when the disk is full."""
        replies = []
        for case in cases:
            read = passages.get(case.number, ())
            key = _digest([case.messages, case.tools, list(read)])
            if key not in self._known:
                self._keep(key, self._answer(case, read))
            replies.append(self._known[key])
            on_progress(len(replies))
        return replies

    def _answer(self, case: Case, passages: Sequence[str]) -> Reply:
        engine, passages = self._model.engine, list(passages)
        prompt = self._model.prompt(self._setup.turns(case, passages), case.tools)
        while passages and len(prompt) + self._max_tokens > engine.context:
            passages.pop()
            prompt = self._model.prompt(self._setup.turns(case, passages), case.tools)
        room = engine.context - len(prompt)
        if room < 1:
            return Reply("", asked=False)
        began, meter = time.monotonic(), EnergyMeter().start()
        grammar = self._setup.grammar or None
        text, report = _whole(engine.complete(prompt, min(self._max_tokens, room), 0.0, 1.0, 0, 0, (), grammar))
        written = report.get("tokens_predicted", 0)
        assert isinstance(written, int)
        self._model.note_memory()
        return Reply(
            text=without_thoughts(text),
            ended=report.get("stop_type") != "limit",
            seconds=time.monotonic() - began,
            read=len(prompt),
            written=written,
            joules=meter.read().joules,
        )

    def _keep(self, key: str, reply: Reply) -> None:
        self._known[key] = reply
        self.peak = max(self.peak, self._model.peak)
        line = json.dumps({"question": key, "peak": self.peak, **asdict(reply)}, ensure_ascii=False) + "\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(line)
        except OSError as e:
            raise ResourceError(
                f"cannot write to {self._path.parent}: {e.strerror}",
                "make room or permission there, and run the same command again: what was answered is kept",
            ) from None

    def _key(self) -> str:
        """Of all that an answer depends on, beside the question and its passages."""
        ref = self._model.ref
        files = [[str(p.resolve()), stamp_of(p)] for p in (ref.weights, ref.adapter) if p is not None]
        return _digest([files, version("xllamacpp"), self._max_tokens, CONTEXT, asdict(self._setup)])


def _whole(pieces: "Iterator[str]") -> tuple[str, Mapping[str, object]]:
    text = ""
    while True:
        try:
            text += next(pieces)
        except StopIteration as ended:
            return text, ended.value


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:24]


def _read(path: Path) -> Iterator[tuple[str, Reply, int]]:
    """What is on the disk; a line that a crash tore is passed over."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            kept = parse_json(line)
            question, peak = kept.pop("question"), int(kept.pop("peak"))
            yield question, Reply(**kept), peak
