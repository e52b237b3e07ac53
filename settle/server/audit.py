"""One line per request: who asked which model for what, how many tokens, how long. Prompts only with --log-prompts."""

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from settle.machine import resident
from settle.server.models.loaded_model import LoadedModel
from settle.wire.types import JsonObject, Usage

LARGEST = 16 << 20  # bytes of the file before it is rotated; one older file is kept


@dataclass
class Record:
    """What is known of a request so far.

    began, first_token: monotonic seconds. prompt: its body, where that is logged."""

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
    prompt: JsonObject | None = None

    def usage(self, usage: Usage | None) -> None:
        if usage:
            self.prompt_tokens = usage.get("prompt_tokens", 0)
            self.completion_tokens = usage.get("completion_tokens", 0)

    def token(self) -> None:
        if self.first_token is None:
            self.first_token = time.monotonic()

    def line(self, method: str, path: str) -> str:
        """Return what a terminal shows of it."""
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
        """Write the line of a request. A full disk loses lines but no answer; it is reported once."""
        if self.path is None:
            return
        line: JsonObject = {
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
            with contextlib.suppress(OSError):  # what was not written is lost, and was reported
                file.close()


BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)  # seconds


class Metrics:
    """What has happened since the server started."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.tokens: Counter[tuple[str, str]] = Counter()
        self.changes: Counter[str] = Counter()
        self._first: Counter[float] = Counter()
        self._first_sum, self._first_count = 0.0, 0

    def count(self, record: Record) -> None:
        self.requests[record.route, record.status] += 1
        if record.model:
            self.tokens[record.model, "prompt"] += record.prompt_tokens
            self.tokens[record.model, "completion"] += record.completion_tokens
        if record.first_token is not None:
            seconds = record.first_token - record.began
            self._first_sum += seconds
            self._first_count += 1
            for bucket in BUCKETS:
                self._first[bucket] += seconds <= bucket

    def text(self, loaded: Sequence[LoadedModel]) -> str:
        """Return the page of metrics. loaded: the models in memory."""
        lines = ["# TYPE settle_requests_total counter"]
        for (route, status), number in sorted(self.requests.items()):
            lines.append(f'settle_requests_total{{route="{_escaped(route)}",status="{status}"}} {number}')
        lines.append("# TYPE settle_tokens_total counter")
        for (name, kind), number in sorted(self.tokens.items()):
            lines.append(f'settle_tokens_total{{model="{_escaped(name)}",kind="{kind}"}} {number}')
        lines.append("# TYPE settle_model_changes_total counter")
        lines += [f'settle_model_changes_total{{change="{c}"}} {n}' for c, n in sorted(self.changes.items())]
        lines.append("# TYPE settle_first_token_seconds histogram")
        lines += [f'settle_first_token_seconds_bucket{{le="{b}"}} {self._first[b]}' for b in BUCKETS]
        lines.append(f'settle_first_token_seconds_bucket{{le="+Inf"}} {self._first_count}')
        lines.append(f"settle_first_token_seconds_sum {self._first_sum:.6f}")
        lines.append(f"settle_first_token_seconds_count {self._first_count}")
        lines.append("# TYPE settle_model_memory_bytes gauge")
        lines += [f"settle_model_memory_bytes{_labels(model)} {model.resident_bytes}" for model in loaded]
        lines.append("# TYPE settle_model_requests gauge")
        lines += [f"settle_model_requests{_labels(model)} {model.busy}" for model in loaded]
        lines += ["# TYPE process_resident_memory_bytes gauge", f"process_resident_memory_bytes {resident()}"]
        return "\n".join(lines) + "\n"


def _labels(model: LoadedModel) -> str:
    return f'{{model="{_escaped(model.key.path.stem)}",use="{model.key.use}"}}'


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
