"""What a run's page says beside its curves, made from its files and its feed."""

from collections.abc import Mapping

from settle.base.errors import SettleError, malformed_is_format_error
from settle.base.events import Listing
from settle.base.run import Run
from settle.base.run.result import Result
from settle.base.words.amounts import amount, duration
from settle.base.words.figures import comparison
from settle.base.words.sentences import evidence_text, left_text, outlook_text
from settle.base.words.tones import TONES
from settle.studio.runs.feed import RunFeed

MOST_CARD = 60_000  # characters of a card that are shown


def now_facts(feed: RunFeed, is_running: bool) -> list[tuple[str, str]]:
    """How far it is, and while it runs what it takes, and how long it still will."""
    course, left, usage = feed.course, feed.course.left, feed.usage if is_running else None
    return [
        ("step", f"{left.step:,}" if left.step else ""),
        ("tokens", amount(left.tokens, "count") if left.tokens else ""),
        ("speed", f"{amount(left.tokens_per_second, 'count')} tokens/s" if left.tokens_per_second else ""),
        ("time", duration(feed.seconds) if feed.seconds else ""),
        ("left", " · ".join(text for text in left_text(course) if "left" in text) if is_running else ""),
        ("memory", amount(usage.memory, "bytes") if usage else ""),
        ("power", f"{usage.watts:.0f} W" if usage and usage.watts is not None else ""),
        ("expected", outlook_text(course).removeprefix("expected at the end: ") if is_running else ""),
    ]


def settled_text(feed: RunFeed, is_running: bool) -> tuple[float | None, str]:
    """How near to settled, from 0 to 1, and the evidence."""
    course = feed.course
    if course.state == "decaying" and is_running:
        return 1.0, "The learning rate falls to zero over the last stretch."
    text = evidence_text(course, 200)
    return course.nearness, text[:1].upper() + text[1:] + "." if text else ""


def unfinished_facts(feed: RunFeed) -> list[tuple[str, str]]:
    """Return the error that the latest session of a run without a result ended with, if there was one."""
    failure = feed.course.failure
    return [("why", failure.what if failure else "The run is not finished."), ("fix", failure.fix if failure else "")]


def forecast_of(run: Run, result: Result | None) -> Listing:
    """Return the forecast next to the actual figures; no rows without one. Raises SettleError."""
    with malformed_is_format_error(run.name):
        forecast: Mapping[str, object] = (result.forecast if result else None) or run.read("forecast.json") or {}
        return comparison(forecast, (result.actual or None) if result else None)


def card_of(run: Run) -> str:
    """Return the model card; empty without one."""
    try:
        with (run.out / "card.md").open(encoding="utf-8", errors="replace") as f:
            return f.read(MOST_CARD)
    except OSError:
        return ""


def state_text(feed: RunFeed, status: str, result: Result | None, fault: SettleError | None) -> tuple[str, str]:
    """(text, tone) of a run's state."""
    if fault is not None:
        return "damaged", TONES["damaged"]
    is_failed = status == "interrupted" and feed.course.failure is not None
    text = result.shown_verdict if result is not None else "failed" if is_failed else status
    return text, TONES.get(text, "dim")
