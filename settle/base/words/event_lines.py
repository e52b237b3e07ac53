"""The events that are said in a line, in words that the terminal and the studio share."""

from collections.abc import Iterator

from settle.base import events as kinds
from settle.base.events import Event
from settle.base.words.data_lines import rows_lines, secrets_warning, text_line
from settle.base.words.sentences import decay_text, eval_text, rollback_text, undeclared_text


def event_lines(event: Event) -> Iterator[tuple[str, str]]:
    """(text, tone) of each line about an event; many have none. tone: "", warn or bad."""
    secrets: str | None = None
    match event:
        case kinds.Say():
            yield event.text, ""
        case kinds.Warn():
            yield event.text, "warn"
        case kinds.UndeclaredConnection():
            yield undeclared_text(event), "bad"
        case kinds.Resumed():
            yield f"resuming from step {event.step:,}", ""
        case kinds.DecayStarted():
            yield decay_text(event), ""
        case kinds.Rollback():
            yield rollback_text(event), "warn"
        case kinds.Eval() if event.whole:
            yield f"best weights, of step {event.step:,}, evaluated at the end: {eval_text(event)}", ""
        case kinds.TextSummary():
            yield text_line(event), ""
            secrets = secrets_warning(event, "--data.mask keys replaces them")
        case kinds.RowSummary():
            yield from ((text, "") for text in rows_lines(event))
            secrets = secrets_warning(event, "remove them, or the model may repeat them")
    if secrets:
        yield secrets, "warn"
