"""Events as the plain objects that `events.jsonl` holds, and back: what tests look at and what they make runs of."""

from collections.abc import Iterable, Mapping
from typing import Any

from settle.base.event_log import Listener, to_event, to_record
from settle.base.events import Event


def into(records: list[dict[str, Any]]) -> Listener:
    """A listener that appends each event to `records`."""
    return lambda event: records.append(to_record(event))


def as_event(record: Mapping[str, Any]) -> Event:
    event = to_event({"time": 0.0, **record})
    assert event is not None, record
    return event


def as_events(records: Iterable[Mapping[str, Any]]) -> list[Event]:
    """Events of records; kinds of a later version are passed over, as a reader of a file does."""
    return [event for record in records if (event := to_event({"time": 0.0, **record})) is not None]
