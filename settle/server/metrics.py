"""Metrics for Prometheus, in its text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from collections import Counter
from collections.abc import Sequence

from settle.machine import resident
from settle.server.audit import Record
from settle.server.models.loaded_model import LoadedModel

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
        """The page of metrics. loaded: the models in memory."""
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
