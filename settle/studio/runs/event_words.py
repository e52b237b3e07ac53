"""The events of a run as sentences, as the terminal says them."""

from collections.abc import Iterator

from settle.base import events as kinds
from settle.base.events import Event
from settle.base.words.data_lines import rows_lines, secrets_warning, text_line
from settle.base.words.sentences import PHASES, decay_text, eval_text, rollback_text, undeclared_text


def event_words(event: Event) -> Iterator[tuple[str, str]]:
    """(text, tone) of each line about an event; what curves and figures show has none. tone: "", good, bad or warn."""
    match event:
        case kinds.Say():
            yield event.text, ""
        case kinds.Warn():
            yield event.text, "warn"
        case kinds.UndeclaredConnection():
            yield undeclared_text(event), "bad"
        case kinds.PhaseStarted() if event.phase in PHASES:
            yield f"stage: {PHASES[event.phase]}", "dim"
        case kinds.Resumed():
            yield f"resuming from step {event.step:,}", ""
        case kinds.DecayStarted():
            yield decay_text(event), ""
        case kinds.RunFailed():
            yield f"{event.what} → {event.fix}" if event.fix else event.what, "bad"
        case kinds.Rollback():
            yield rollback_text(event), "warn"
        case kinds.Eval() if event.whole:
            yield f"best weights, of step {event.step:,}, evaluated at the end: {eval_text(event)}", ""
        case kinds.ProofCheck() | kinds.GateCheck():
            yield f"{event.kind}: {event.check}{f' – {event.detail}' if event.detail else ''}", _tone(event.passed)
        case kinds.TextSummary():
            yield text_line(event), ""
            yield from ((text, "warn") for text in [secrets_warning(event, "--data.mask keys replaces them")] if text)
        case kinds.RowSummary():
            yield from ((text, "") for text in rows_lines(event))


def _tone(passed: bool) -> str:
    return "good" if passed else "bad"
