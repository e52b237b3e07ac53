"""Measurements on the disk by key: what was measured before is read there, after a Ctrl-C or much later."""

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic

from pydantic import TypeAdapter

from settle.base.files import append_lines, home, read_lines
from settle.experiment.arm import Reply, Value, digest

CONTINUES = "and run the same command again: what was measured is kept"


class MeasureRecord(ABC, Generic[Value]):
    """A file of measurements, one JSON line each, which only grows. A damaged line is passed over and made again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Value] = {}
        for line in read_lines(path):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                key, value = self._read(line)
                self._known[key] = value

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Value | None:
        return self._known.get(key)

    def add(self, measured: Mapping[str, Value]) -> None:
        """Keep measurements. Raises ResourceError when they cannot be written."""
        self._known |= measured
        append_lines(self._path, [self._line(key, value) for key, value in measured.items()], then=CONTINUES)

    @abstractmethod
    def _read(self, line: dict[str, Any]) -> tuple[str, Value]:
        """Return what a line holds. Raises ValueError, KeyError, TypeError for what is not one of this record."""

    @abstractmethod
    def _line(self, key: str, value: Value) -> dict[str, object]:
        """Return the line of a measurement."""


class ReplyRecord(MeasureRecord[Reply]):
    """The replies of one arm, by the key of the question."""

    def __init__(self, arm_key: str) -> None:
        super().__init__(home() / "trials" / f"{digest(arm_key)}.jsonl")

    @property
    def seconds(self) -> float | None:
        """Mean time of an answer, None where none is known."""
        known = [reply.seconds for reply in self._known.values() if reply.seconds > 0]
        return sum(known) / len(known) if known else None

    def _read(self, line: dict[str, Any]) -> tuple[str, Reply]:
        return str(line.pop("question")), _reply().validate_python(line)

    def _line(self, key: str, value: Reply) -> dict[str, object]:
        return {"question": key, **asdict(value)}


@functools.cache
def _reply() -> TypeAdapter[Reply]:
    return TypeAdapter(Reply)


class ProofRecord(MeasureRecord[float]):
    """The measurements of one part and side of an A/B, by the place of the item; all of an A/B are in one file."""

    def __init__(self, path: Path, part: str, side: str) -> None:
        self._part, self._side = part, side
        super().__init__(path)

    def _read(self, line: dict[str, Any]) -> tuple[str, float]:
        if (line["part"], line["side"]) != (self._part, self._side):
            raise ValueError("of another part or side")
        return str(int(line["item"])), float(line["value"])

    def _line(self, key: str, value: float) -> dict[str, object]:
        return {"part": self._part, "side": self._side, "item": int(key), "value": value}
