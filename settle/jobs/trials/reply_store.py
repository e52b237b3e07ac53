"""Answers on the disk: what an arm answered to the same words before is read there, after a Ctrl-C or much later."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from settle.base.errors import ResourceError
from settle.base.files import home, parse_json
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
        lines = []
        for key, reply in zip(questions, replies, strict=True):
            self._known[key] = reply
            lines.append(json.dumps({"question": key, **asdict(reply)}, ensure_ascii=False) + "\n")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(lines)
        except OSError as e:
            raise ResourceError(
                f"cannot write to {self._path.parent}: {e.strerror}",
                "make room or permission there, and run the same command again: what was answered is kept",
            ) from None


def _read(path: Path) -> Iterator[tuple[str, Reply]]:
    """What is on the disk; a line that a crash tore is passed over."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            kept = parse_json(line)
            yield (
                kept["question"],
                Reply(
                    text=str(kept["text"]),
                    ended=bool(kept["ended"]),
                    asked=bool(kept["asked"]),
                    read=int(kept["read"]),
                    written=int(kept["written"]),
                    seconds=float(kept["seconds"]),
                    joules=float(kept.get("joules", 0.0)),
                    probabilities={str(k): float(v) for k, v in kept["probabilities"].items()},
                ),
            )
