"""Counts for Prometheus, in its text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from collections import Counter
from typing import TYPE_CHECKING

from settle.machine import resident
from settle.server.audit import Record
from settle.server.models.model_pool import held

if TYPE_CHECKING:
    from settle.server.models.model_pool import Keeper

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """What happened since the server started."""

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

    def text(self, keeper: "Keeper") -> str:
        """What a scrape gets."""
        lines = ["# TYPE settle_requests_total counter"]
        for (route, status), number in sorted(self.requests.items()):
            lines.append(f'settle_requests_total{{route="{_safe(route)}",status="{status}"}} {number}')
        lines.append("# TYPE settle_tokens_total counter")
        for (model, kind), number in sorted(self.tokens.items()):
            lines.append(f'settle_tokens_total{{model="{_safe(model)}",kind="{kind}"}} {number}')
        lines.append("# TYPE settle_model_changes_total counter")
        lines += [f'settle_model_changes_total{{change="{c}"}} {n}' for c, n in sorted(self.changes.items())]
        lines.append("# TYPE settle_first_token_seconds histogram")
        lines += [f'settle_first_token_seconds_bucket{{le="{b}"}} {self._first[b]}' for b in BUCKETS]
        lines.append(f'settle_first_token_seconds_bucket{{le="+Inf"}} {self._first_count}')
        lines.append(f"settle_first_token_seconds_sum {self._first_sum:.6f}")
        lines.append(f"settle_first_token_seconds_count {self._first_count}")
        lines.append("# TYPE settle_model_memory_bytes gauge")
        for loaded in keeper.loaded():
            name = _safe(loaded.key.path.stem)
            lines.append(f'settle_model_memory_bytes{{model="{name}",use="{loaded.key.use}"}} {held(loaded)}')
        lines.append("# TYPE settle_model_requests gauge")
        for loaded in keeper.loaded():
            name = _safe(loaded.key.path.stem)
            lines.append(f'settle_model_requests{{model="{name}",use="{loaded.key.use}"}} {loaded.busy}')
        lines += ["# TYPE process_resident_memory_bytes gauge", f"process_resident_memory_bytes {resident()}"]
        return "\n".join(lines) + "\n"


def _safe(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
