"""What `settle pick` and `settle shrink` measured: one figure against another, with the frontier."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from settle.base.errors import malformed_is_format_error
from settle.base.files import home, read_json
from settle.base.run import Run
from settle.shrink.pareto import frontier

MOST_RESULTS = 12  # that are offered, the newest first
MEGABYTE = 1e6


class MeasuredResult(NamedTuple):
    """A result on this machine. kind: pick or shrink; path: of its result.json."""

    kind: str
    name: str
    path: Path


@dataclass(frozen=True)
class Dot:
    """One model or file.

    low, high: interval of y, where it is known. chosen: it is the one that was exported, or that is recommended.
    """

    name: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    memory: float | None = None
    chosen: bool = False


@dataclass(frozen=True)
class Tradeoff:
    """One figure against another, with the frontier.

    x, y: axis titles, with units. more: whether more of each is better. reference: name and x of what the others' y is
    measured against. is_share: y is drawn from 0 to 1, otherwise on a logarithmic scale.
    """

    title: str
    x: str
    y: str
    more: tuple[bool, bool]
    dots: list[Dot]
    reference: tuple[str, float] | None = None
    is_share: bool = False

    @property
    def best(self) -> list[Dot]:
        """Those that no other one beats in both figures."""
        x, y = (1 if more else -1 for more in self.more)
        return frontier(self.dots, lambda dot: (x * dot.x, y * dot.y))


def measured_results() -> list[MeasuredResult]:
    """Return the newest results that have several candidates."""
    picks = [MeasuredResult("pick", path.parent.name, path) for path in (home() / "picks").glob("*/result.json")]
    runs = [run for run in Run.all() if run.path.name[11:].startswith("shrink-")]
    shrinks = [MeasuredResult("shrink", run.name, path) for run in runs if (path := run.path / "result.json").is_file()]
    return sorted([*picks, *shrinks], key=lambda result: -result.path.stat().st_mtime)[:MOST_RESULTS]


def read_tradeoffs(result: MeasuredResult) -> list[Tradeoff]:
    """Its pictures. Raises SettleError where the file is damaged, or of another version."""
    record: Any = read_json(result.path)
    with malformed_is_format_error(str(result.path)):
        return list(_of_pick(record) if result.kind == "pick" else _of_shrink(record))


def _of_pick(record: Mapping[str, Any]) -> Iterator[Tradeoff]:
    dots = [
        Dot(m["name"], m["measured"]["speed"]["median"], m["score"], memory=m["measured"]["peak_bytes"],
            chosen=m["name"] == record["chosen"])
        for m in record["models"] if m["score"] is not None
    ]  # fmt: skip
    if dots:
        is_share = all(0 <= dot.y <= 1 for dot in dots)
        yield Tradeoff(
            "Speed against quality", "speed, per second", str(record["measure"]), (True, True), dots, None, is_share
        )


def _of_shrink(record: Mapping[str, Any]) -> Iterator[Tradeoff]:
    """Yield the trade-offs of a run that shrank; a plan has its reference first among its candidates."""
    files = [*record["candidates"], *([record["chosen"]] if "chosen" in record else [])]
    whole = record.get("reference") or next((file for file in files if not file["divergence"]), None)
    chosen = record["chosen"]["name"] if "chosen" in record else None
    axes = [("Size against loss", "file size, MB", False), ("Speed against loss", "tokens per second", True)]
    for title, x, is_speed in axes:
        dots = [
            Dot(str(file["name"]), at, max(kl["value"], 0.0), kl["low"], kl["high"],
                (file["footprint"] or {}).get("peak_bytes"), file["name"] == chosen)
            for file in files if file["divergence"] and (at := _along(file, is_speed)) is not None
            for kl in [file["divergence"]["kl"]]
        ]  # fmt: skip
        if dots:
            at = _along(whole, is_speed) if whole else None
            reference = (str(whole["name"]), at) if whole and at is not None else None
            yield Tradeoff(title, x, "KL from the whole model, nats per token", (is_speed, False), dots, reference)


def _along(file: Mapping[str, Any], is_speed: bool) -> float | None:
    """Where a file lies on the x axis: its tokens per second, None where they were not measured, or its megabytes."""
    if is_speed:
        return float(file["footprint"]["speed"]["median"]) if file["footprint"] else None
    return int(file["bytes"]) / MEGABYTE
