"""Tables and panels: the plan, the forecast, forecast beside actual figures, the verdict, and any list."""

import os
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from settle.base.events import ForecastReady, Listing, PlanReady
from settle.base.run.result import TONES, Result
from settle.base.words.amounts import UNITS, amount
from settle.base.words.figures import comparison, flat, listed
from settle.base.words.sentences import WHY_FITS

ORIGIN_STYLES = {"asked": "bold green", "recipe": "cyan", "derived": "blue", "measured": "magenta", "default": "dim"}
COMPARED_STYLES = {
    "better": "bold green",
    "no different": "yellow",
    "too few rows to tell": "yellow",
    "worse": "bold red",
}
TONE_STYLES = {"good": "green", "warn": "yellow", "bad": "red", "live": "cyan", "dim": "dim"}
FIRST_WIDTH, TEXT_WIDTH = 24, 12  # columns that a text needs at least before it is folded
PLAN_UNITS = {"parameters": "count"}
NUM_SHORT = 4  # values of a plan in its short form, the first of these that are no defaults
SHORT = ("time", "tokens", "steps", "epochs", "parameters", "adapter.rank", "context", "batch_tokens", "dtype",
         "batch_rows", "optimizer.lr", "warmup_steps", "held_out_tokens", "rows.max_tokens")  # fmt: skip


def plan_line(event: PlanReady) -> str:
    """Return the values of a plan that matter most, and how many more there are."""
    values = {k: v for k, v in flat(event.values).items() if event.origin.get(k) != "default" and v is not None}
    shown = [name for name in SHORT if name in values][:NUM_SHORT]
    parts = [f"{name.replace('_', ' ')} {amount(values[name], PLAN_UNITS.get(name, ''))}" for name in shown]
    return f"plan: {' · '.join(parts)} · -v: {len(values) - len(shown)} more"


def forecast_line(event: ForecastReady) -> str:
    """Return the expected figures, and the 80 % interval of the loss."""
    parts = []
    for name, value, interval in comparison(event.forecast, None).rows:
        low_to_high = f" ({str(interval).removesuffix(' nats')})" if name == "loss" and interval else ""
        if "estimated" not in str(name):
            parts.append(f"{name} {str(value).removesuffix(f' {name}')}{low_to_high}")
    return f"forecast: {' · '.join(parts)}"


def actual_line(figures: Listing) -> str:
    """Return the actual figures that a forecast can be compared with; empty when there are none."""
    parts = [f"{row[0]} {row[-2]}, {row[-1]}" for row in figures.rows if row[-1]]
    return f"actual: {' · '.join(parts)}" if parts else ""


def plan_table(event: PlanReady, width: int) -> RenderableType:
    """Every number with its origin. A plan that is not `full` leaves the defaults out and says how many there are."""
    values, origins, reasons = flat(event.values), event.origin, event.why
    table = _table("plan")
    table.add_column("setting", style="bold", no_wrap=True)
    table.add_column("value", overflow="fold", max_width=max(12, width // 3))
    table.add_column("from", no_wrap=True)
    if width >= WHY_FITS:
        table.add_column("why", style="dim", overflow="fold")
    hidden = 0
    for key, value in values.items():
        origin = {"command line": "asked"}.get(origins.get(key, ""), origins.get(key, "derived"))
        if origin == "default" and not event.full:
            hidden += 1
            continue
        leaf = key.rsplit(".", 1)[-1]
        row = [Text(key), Text(amount(value, UNITS.get(leaf, ""))), Text(origin, ORIGIN_STYLES.get(origin, ""))]
        table.add_row(*row, *([Text(str(reasons.get(key, "")))] if width >= WHY_FITS else []))
    if hidden:
        return Group(table, Text(f"  and {hidden} defaults; --dry shows them", "dim"))
    return table


def verdict_panel(result: Result, width: int, has_border: bool = True) -> RenderableType:
    """Return the verdict, why, the best evaluation and the gate. Without a border the verdict is the first line's."""
    style = tone_style(result.shown_verdict) or "bold"
    lines = [Text(result.why)]
    best, passed = result.best, (result.gate or {}).get("passed")
    if best is not None and best.loss is not None:
        text = f"held-out loss {best.loss:.4f}"
        text += f" ± {best.stderr:.4f}" if best.stderr is not None else ""
        text += f" · {best.bits_per_byte:.4f} bits per byte" if best.bits_per_byte is not None else ""
        text += f" · step {best.step:,}" if best.step is not None else ""
        text += " · gate: passed" if passed else ""
        lines.append(Text(text, "bold"))
    if result.headline:
        compared = str((result.comparison or {}).get("verdict"))
        lines.append(Text(result.headline, COMPARED_STYLES.get(compared, "bold")))
    lines += [Text(f"! {note}", "yellow") for note in result.notes]
    if passed is False:
        lines.append(Text("gate: FAILED", "bold red"))
    if result.system_prompt:
        lines.append(Text(f"its default system prompt, that of every row: {result.system_prompt}", "dim"))
    if not has_border:
        return Group(Text.assemble((f"{result.shown_verdict}: ", style), lines[0]), *lines[1:])
    title = Text(f" {result.shown_verdict} ", style if style == "dim" else f"bold {style}")
    return Panel(
        Group(*lines), title=title, title_align="left", border_style=style, width=min(width, 100),
    )  # fmt: skip


def output_files(result: Result) -> str:
    """Return the files of a run and their folder, on one line that can be copied; empty when there are none."""
    paths = [Path(str(path)) for path in result.files.values()]
    if not paths:
        return ""
    folder = paths[0].parent
    return f"{', '.join(os.path.relpath(path, folder) for path in paths)} in {folder}"


def listing(event: Listing, width: int = WHY_FITS) -> Table:
    """Any list: `columns` (names), `rows` (text, numbers, or {value, unit}), `title`. Numbers stand to the right.

    Columns that do not fit into `width` are left out from the right, and named below: the first says what a row is.
    """
    table = _table(event.title)
    names, (rows, number) = list(event.columns), listed(event)
    needed = [max(len(name), *(len(row[i]) for row in rows), 0) for i, name in enumerate(names)]
    needed = [n if number[i] else min(n, FIRST_WIDTH if i == 0 else TEXT_WIDTH) for i, n in enumerate(needed)]
    shown = len(names)
    while shown > 2 and sum(needed[:shown]) + 3 * shown - 1 > width:
        shown -= 1
    for i, name in enumerate(names[:shown]):
        fixed, style = number[i] or i == 0, "bold" if i == 0 else ""
        table.add_column(
            name, justify="right" if number[i] else "left", overflow="fold", min_width=needed[i] * fixed, style=style
        )
    for row in rows:
        table.add_row(*(Text(cell, tone_style(cell) or tone_style(cell.split(" ")[0])) for cell in row[:shown]))
    left_out = ", ".join(filter(None, names[shown:]))
    if left_out:
        table.caption = Text(f"a wider terminal shows {left_out} too", "dim")
        table.caption_justify = "left"
    return table


def tone_style(word: str) -> str:
    """How a word that is good or bad news looks; "" for others."""
    return TONE_STYLES.get(TONES.get(word, ""), "")


def aligned(event: Listing) -> str:
    """Return a list as text for a pipe: aligned columns, two spaces apart, never cut."""
    named = [list(event.columns)] if any(event.columns) else []
    rows = [*named, *listed(event)[0]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _table(title: str) -> Table:
    return Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        header_style="dim",
    )
