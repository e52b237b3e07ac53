"""Examples as they are learned from: what is supervised stands out, in colour or, without any, between brackets."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from settle.base.events import AnswerChanges, PreviewRow
from settle.base.words.data_lines import ASKED, flat_text
from settle.show.signs import CLOSE, OPEN

# characters of a piece that are shown: from its beginning, and from its end
_LEARNED, _GIVEN = (700, 200), (300, 200)
_ANSWER = 280  # characters of an answer


def preview_text(rows: Sequence[PreviewRow], in_colour: bool) -> Text:
    """Previews (see `settle.data.rows.encode_rows.Preview`) one under the other."""
    shown = Text()
    for row in rows:
        part = f", {row.part}" if row.part else ""
        head = f"{row.origin}{part}: {row.num_supervised:,} of {row.num_tokens:,} tokens are learned\n"
        shown.append(head, "bold")
        for text, learned in row.pieces:
            short = _shortened(text, *(_LEARNED if learned else _GIVEN))
            if learned:
                shown.append(short if in_colour else f"{OPEN}{short}{CLOSE}", "green")
            else:
                shown.append(short, "dim")
        shown.append("\n\n")
    shown.rstrip()
    return shown


def answer_changes_table(event: AnswerChanges, width: int) -> RenderableType:
    """Return the answers that changed most: what was asked and wanted, and below it both answers side by side."""
    table = Table(title="the answers that changed most", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for name in (event.base, event.tuned):
        table.add_column(name, overflow="fold", ratio=1)
    table.expand, table.width = True, min(width, 140)
    for row in event.rows:
        asked = f"row {row.number} ({row.gain:+.2f}): {flat_text(row.question, ASKED)}"
        table.add_row(Text(asked, "bold"), Text(f"wanted: {flat_text(row.reference, ASKED)}", "dim"))
        table.add_row(Text(flat_text(row.base, _ANSWER)), Text(flat_text(row.tuned, _ANSWER)), end_section=True)
    return table


def _shortened(text: str, first: int, last: int) -> str:
    if len(text) <= first + last:
        return text
    return f"{text[:first]} … {len(text) - first - last:,} characters … {text[-last:]}"
