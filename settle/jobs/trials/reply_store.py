"""Answers on the disk: what an arm answered to the same words before is read there, after a Ctrl-C or much later."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from settle.base.files import home
from settle.base.json_lines import append_lines, read_lines
from settle.jobs.trials.arm import Reply


class ReplyStore:
    """What one arm answered, by the key of the question. key: of the arm."""

    def __init__(self, key: str) -> None:
        self._path = home() / "trials" / f"{key}.jsonl"
        self._known = dict(_read(self._path))

    def get(self, question: str) -> Reply | None:
        return self._known.get(question)

    @property
    def seconds(self) -> float | None:
        """That an answer took on average, or None where none is known."""
        known = [reply.seconds for reply in self._known.values() if reply.seconds > 0]
        return sum(known) / len(known) if known else None

    def add(self, questions: Sequence[str], replies: Sequence[Reply]) -> None:
        """Keeps answers. Raises ResourceError when the disk is full."""
        answered = dict(zip(questions, replies, strict=True))
        self._known |= answered
        lines = [{"question": key, **asdict(reply)} for key, reply in answered.items()]
        append_lines(self._path, lines, then="and run the same command again: what was answered is kept")


def _read(path: Path) -> Iterator[tuple[str, Reply]]:
    """Yield what is on the disk; a line without an answer is passed over."""
    for kept in read_lines(path):
        with contextlib.suppress(KeyError, ValidationError):
            yield str(kept.pop("question")), _reply().validate_python(kept)


@functools.cache
def _reply() -> TypeAdapter[Reply]:
    return TypeAdapter(Reply)
