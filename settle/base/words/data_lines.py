"""What became of the data of a run, in words."""

from collections.abc import Mapping

from settle.base.events import LedgerSummary, ReasonCount, RowSummary, TextSummary
from settle.base.words.amounts import count

ASKED = 140  # characters of a question that are shown


def rows_lines(event: RowSummary) -> list[str]:
    """Return what was read, how it was understood, and what the user should know of it."""
    lines = [f"{file}: {use.layout} ({_columns(use.columns)})" for file, use in event.layouts.items()]
    if len(lines) > 4:
        lines = [*lines[:3], f"and {len(lines) - 3} more files"]
    unused = next((use.labels for use in event.layouts.values() if use.labels), "")
    if unused:
        lines.append(f"column {unused!r} is not learned; it seems to hold labels: `--objective decision` learns them")
    train = event.train
    share = train["supervised"] / max(1, train["tokens"])
    lines.append(_sides(event, "rows", "rows "))
    lines.append(
        f"{count(train['tokens'])} tokens, {share:.0%} of them supervised ({event.supervise}); "
        f"the longest row has {event.lengths['max']:,}"
    )
    if losses := _losses(event):
        lines.append(" · ".join(losses))
    if event.too_long["shortened"]:
        lines.append(f"later answers left out for their length: {event.too_long['shortened']:,} rows")
    if event.system_prompt:
        lines.append(
            f"every row has the system prompt “{flat_text(event.system_prompt, ASKED)}”: the model's default from now"
        )
    return [*lines, *event.notes]


def text_line(event: TextSummary) -> str:
    """Return what was read, and what became of it."""
    return " · ".join([f"{event.read:,} documents read, {_sides(event, 'documents')}", *_losses(event)])


def _sides(event: LedgerSummary, unit: str, name: str = "") -> str:
    """How much of the data is for what; long documents are cut, and their parts may be for different things."""
    selecting = event.selection[unit] if event.selection else 0
    total, cut = event.train[unit] + selecting + event.held_out[unit], ""
    if isinstance(event, TextSummary) and total > event.read:
        cut = "parts of "
    choosing = f"{cut}{selecting:,} to choose the best weights, " if event.selection else ""
    return f"{cut}{event.train[unit]:,} {name}to learn from, {choosing}{cut}{event.held_out[unit]:,} held out to judge"


def secrets_warning(event: LedgerSummary, fix: str) -> str | None:
    """Where keys and passwords are that a model would learn by heart; None when there are none, or all are masked."""
    kind = "keys and passwords"
    if kind not in event.found or f"{kind} masked" in event.mended:
        return None
    places = event.found_at.get(kind, [])
    more = ", …" if event.found[kind] > len(places) else ""
    return f"{kind} in what is learned: {event.found[kind]:,}, at {', '.join(places)}{more}; {fix}"


def _losses(event: LedgerSummary) -> list[str]:
    """Yield what was left out, changed, not read and found, each with its reasons."""
    counted = {"left out": event.dropped, "repaired": event.mended, "files or folders not read": event.skipped}
    losses = [f"{what}: {_reasons(reasons)}" for what, reasons in counted.items() if reasons]
    if event.omissions:
        name, notes = next(iter(event.omissions.items()))
        more = f", and of {len(event.omissions) - 1:,} more" if len(event.omissions) > 1 else ""
        losses.append(f"not read of {name}: {'; '.join(notes)}{more}")
    if event.found:
        losses.append("found: " + ", ".join(f"{kind} ({number:,})" for kind, number in event.found.items()))
    return losses


def _reasons(reasons: Mapping[str, ReasonCount]) -> str:
    most_first = sorted(reasons.items(), key=lambda item: -item[1].count)
    return ", ".join(f"{reason} ({_shown_count(entry)})" for reason, entry in most_first)


def _shown_count(entry: ReasonCount) -> str:
    """How often, or where if it was only once."""
    where = entry.examples[0].get("where") if entry.count == 1 and entry.examples else None
    return where or f"{entry.count:,}"


def _columns(columns: Mapping[str, str]) -> str:
    return ", ".join(what if what == column else f"{what} from {column!r}" for what, column in columns.items())


def flat_text(text: str, most: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"
