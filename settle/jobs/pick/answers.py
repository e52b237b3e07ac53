"""Answers of a model to the person's prompts, written once: what was answered before is read from the disk."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from settle.base.errors import ResourceError
from settle.base.run import home, parse_json
from settle.evaluate.compare.candidate import Answer, FileModel
from settle.evaluate.compare.cases import Case
from settle.library.facts import read_facts
from settle.library.reference import ModelRef
from settle.library.store import stamp_of
from settle.machine import memory

SLOTS = 4  # answers at a time: half of the gain of eight, and twice as many chances to stop asking
CACHE_SHARE = 0.25  # of the free memory, for what the slots keep of their prompts


class Answerer:
    """One model that answers prompts. It is loaded when an answer is missing, and not before; `close` unloads it.

    context: tokens of a prompt and its answer. on_loss: called where an answer could not be kept on the disk.
    """

    def __init__(self, ref: ModelRef, context: int, max_tokens: int) -> None:
        self._ref, self._context, self._max_tokens = ref, context, max_tokens
        self._model: FileModel | None = None
        self._path = home() / "picks" / "answers" / f"{_key(ref, max_tokens)}.jsonl"
        self._known = dict(_read(self._path))

    def answers(self, cases: Sequence[Case], on_progress: Callable[[int], None]) -> list[Answer]:
        """An answer to each case. on_progress: called with how many there are. Raises what `FileModel` raises, and
        ResourceError when the disk is full."""
        missing = [case for case in cases if _question(case) not in self._known]
        here = len(cases) - len(missing)
        on_progress(here)
        for begin in range(0, len(missing), SLOTS):
            group = missing[begin : begin + SLOTS]
            made = self._loaded().answers(group, self._max_tokens, lambda done: None)
            self._keep(group, made)
            on_progress(here + begin + len(group))
        return [self._known[_question(case)] for case in cases]

    def close(self) -> None:
        """Unloads the model. Calling it twice is harmless."""
        model, self._model = self._model, None
        if model is not None:
            model.__exit__()

    def _loaded(self) -> FileModel:
        if self._model is None:
            per_slot = max(1, read_facts(self._ref.weights).bytes_per_token * self._context)
            slots = max(1, min(SLOTS, int(CACHE_SHARE * memory().available) // per_slot))
            ref = self._ref
            self._model = FileModel.open(ref.weights, ref.name, ref.adapter, self._context, slots)
        return self._model

    def _keep(self, cases: Sequence[Case], answers: Sequence[Answer]) -> None:
        lines = []
        for case, answer in zip(cases, answers, strict=True):
            self._known[_question(case)] = answer
            lines.append(json.dumps({"question": _question(case), **asdict(answer)}, ensure_ascii=False) + "\n")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(lines)
        except OSError as e:
            raise ResourceError(
                f"cannot write to {self._path.parent}: {e.strerror}",
                "make room or permission there, and run the same command again: what was answered is kept",
            ) from None


@contextlib.contextmanager
def closing(answerers: Sequence[Answerer]) -> Iterator[None]:
    """Unloads all of them at the end, whatever happens."""
    try:
        yield
    finally:
        for answerer in answerers:
            answerer.close()


def _key(ref: ModelRef, max_tokens: int) -> str:
    """Of all that an answer depends on, beside the question: the files, the engine, the length. Answers are the
    likeliest ones."""
    files = [p for p in (ref.weights, ref.adapter) if p is not None]
    known = [[str(p.resolve()), stamp_of(p)] for p in files]
    text = json.dumps([known, version("xllamacpp"), max_tokens])
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:24]


def _question(case: Case) -> str:
    text = json.dumps([case.messages, case.tools, case.prompt], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:24]


def _read(path: Path) -> Iterator[tuple[str, Answer]]:
    """What is on the disk; a line that a crash tore is passed over."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            kept = parse_json(line)
            yield kept["question"], Answer(str(kept["text"]), bool(kept["ended"]), bool(kept["asked"]))
