"""One line per request: who asked which model for what, how many tokens, how long. Prompts only with --log-prompts."""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from settle.server.wire_types import Usage

LARGEST = 16 << 20  # bytes of the file before it is rotated; one older file is kept


@dataclass
class Record:
    """What is known of a request so far. began, first_token: monotonic seconds. prompt: its body, where that is
    logged."""

    route: str
    client: str = ""
    agent: str = ""
    user: str = ""
    model: str = ""
    status: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""
    began: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    prompt: Mapping[str, object] | None = None

    def usage(self, usage: Usage | None) -> None:
        if usage:
            self.prompt_tokens = usage.get("prompt_tokens", 0)
            self.completion_tokens = usage.get("completion_tokens", 0)

    def token(self) -> None:
        if self.first_token is None:
            self.first_token = time.monotonic()

    def line(self, method: str, path: str) -> str:
        """What a terminal shows of it."""
        tokens = f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens" if self.prompt_tokens else ""
        parts = (method, path[:200], self.model, str(self.status), tokens, f"{self.seconds:.2f} s")
        return "  ".join(part for part in parts if part)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


class Audit:
    """path: None keeps nothing. prompts: whether the bodies of requests are kept too."""

    def __init__(self, path: Path | None, prompts: bool = False) -> None:
        self.path, self.prompts = path, prompts
        self._file: TextIO | None = None
        self._is_broken = False

    def write(self, record: Record) -> None:
        """A full disk loses lines but no answer; it is reported once."""
        if self.path is None:
            return
        line: dict[str, object] = {
            "time": round(time.time(), 3),
            "client": record.client,
            "agent": record.agent[:200],
            "user": record.user[:200],
            "route": record.route,
            "model": record.model,
            "status": record.status,
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.completion_tokens,
            "seconds": round(record.seconds, 4),
        }
        line |= {"error": record.error} if record.error else {}
        line |= {"said": record.prompt} if self.prompts and record.prompt is not None else {}
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("a", encoding="utf-8")
                self.path.chmod(0o600)
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            if self._file.tell() > LARGEST:
                self.close()
                self.path.replace(self.path.with_suffix(".old.jsonl"))
            self._is_broken = False
        except OSError as e:
            if not self._is_broken:
                print(f"settle: cannot write the audit file {self.path}: {e.strerror}", file=sys.stderr)  # noqa: T201
            self._is_broken = True
            self.close()

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:
                pass  # what was not written is lost, and was reported
