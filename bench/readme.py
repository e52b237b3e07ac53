"""What README.md shows of settle, made from data: its picture of a run, and its table of models.

    python bench/readme.py [--events FOLDER/events.jsonl]

Writes docs/run.svg, an animated picture of a run, from the events of a real one (the newest run named demo unless
another is given), and the part of README.md between `<!--made:models-->` and `<!--end-->`: the families that can be
tuned, with the models of the catalogue. A run's minutes pass in `SECONDS`. tests/test_docs.py compares the table.
"""

import argparse
import io
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rich.console import Console
from rich.segment import Segment

from settle.base.event_log import read_events
from settle.base.run import Run
from settle.library.catalogue import KnownModel, catalogue_file
from settle.model.families import families
from settle.show.signs import visible_event
from settle.show.talk import Talk

ROOT = Path(__file__).parent.parent
README, PICTURE = ROOT / "README.md", ROOT / "docs/run.svg"
COLUMNS, SECONDS, HOLD = 100, 16.0, 7.0  # of the terminal; of the run in the picture, and of its end
FRAME = 0.4  # least seconds between two pictures of the live display
CELL, LINE, SIZE, EDGE = 8.43, 20, 14, 16  # pixels: of a character, a line, the letters, the border
SHADES = {  # readable on the window's own dark ground, whatever is around it
    "green": "#7ee787", "yellow": "#e3b341", "red": "#ff7b72", "cyan": "#79c0ff", "blue": "#79c0ff",
    "magenta": "#d2a8ff", "bright_black": "#6e7681",
}  # fmt: skip
TEXT, GROUND, DIM = "#e6edf3", "#161b22", "#9198a1"
MOST_NAMED = 3  # models of a family that the table names
MOST_FAMILIES = 7  # with a row of their own


@dataclass(frozen=True)
class Row:
    """A line of the terminal in the picture: what it shows, where (counted in lines), and the seconds it is there."""

    segments: tuple[Segment, ...]
    line: int
    since: float
    until: float | None  # None: to the end

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=Path, help="events.jsonl of a finished run")
    path = parser.parse_args().events or Run.find("demo").events
    rows = list(recorded(path))
    PICTURE.write_text(drawn(rows), encoding="utf-8")
    lines = [row.text for row in rows if row.until is None]
    print(f"{len(lines)} lines; {PICTURE.name}: {PICTURE.stat().st_size / 1e3:.0f} kB")
    fill(models=models_table())


def fill(**made: str) -> None:
    """Write the made parts into the README."""
    text = README.read_text(encoding="utf-8")
    for name, part in made.items():
        before, mark, rest = text.partition(f"<!--made:{name}-->\n")
        text = before + mark + part + "<!--end-->" + rest.partition("<!--end-->")[2]
    README.write_text(text, encoding="utf-8")


def recorded(path: Path) -> Iterator[Row]:
    """Yield what a terminal shows of the events of a run: the lines that stay, and the live display below them."""
    console = Console(
        file=io.StringIO(), width=COLUMNS, force_terminal=True, color_system="standard", legacy_windows=False,
        record=True, highlight=False,
    )  # fmt: skip
    talk = Talk(console)
    talk.live.draw = lambda now=False: None  # type: ignore[method-assign]  # drawn here instead
    events = [event for event in read_events(path) if event.kind != "opened"]
    first, last = events[0].time, events[-1].time
    lines, live, shown_at, home = 1, list[Row](), -FRAME, str(path.absolute().parents[2])
    yield Row((Segment("$ ", None), Segment("settle train --recipe recipes/demo.toml", None)), 0, 0.0, None)
    for event in events:
        at = SECONDS * (event.time - first) / (last - first)
        talk.show(visible_event(event))
        with console._record_buffer_lock:
            written, console._record_buffer = console._record_buffer, []
        written = [s._replace(text=s.text.replace(home, "~/.settle")) for s in written if not s.control]
        new = list(Segment.split_lines(written))
        if not new and at - shown_at < FRAME:
            continue
        yield from (Row(row.segments, row.line, row.since, at) for row in live if at > row.since)
        for segments in new:
            for part in folded(segments):
                yield Row(tuple(part), lines, at, None)
                lines += 1
        with console.capture():
            drawn_now = console.render_lines(talk.live.picture(), console.options, pad=False)
        console._record_buffer = []
        rows = [tuple(segments) for segments in drawn_now if "".join(s.text for s in segments).strip()]
        live = [Row(segments, lines + place, at, None) for place, segments in enumerate(rows)]
        shown_at = at


def folded(segments: list[Segment]) -> Iterator[list[Segment]]:
    """Yield a line in pieces as wide as the terminal."""
    while segments:
        width = Segment.get_line_length(segments)
        (piece, *rest) = Segment.divide(segments, [COLUMNS, width]) if width > COLUMNS else [segments]
        yield piece
        segments = rest[0] if rest else []


def drawn(rows: list[Row]) -> str:
    """Return the animated picture; its last state is what a viewer without animation shows."""
    height = 2 * EDGE + LINE * (1 + max(row.line for row in rows))
    width, whole = round(2 * EDGE + CELL * COLUMNS), SECONDS + HOLD
    rules, shapes = [], []
    for number, row in enumerate(row for row in rows if row.text):
        since, until = 100 * row.since / whole, 100 * (row.until if row.until is not None else whole) / whole
        end = "" if row.until is None else f"{until:.3f}%{{visibility:hidden}}"
        rules.append(f"@keyframes k{number}{{0%{{visibility:hidden}}{since:.3f}%{{visibility:visible}}{end}}}")
        rest = "" if row.until is None else ' visibility="hidden"'
        style = f'style="animation-name:k{number}"'
        shapes.append(f'<text y="{EDGE + LINE * (row.line + 0.75):.0f}"{rest} {style}>{"".join(spans(row))}</text>')
    style = (
        f"text{{font:{SIZE}px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:{TEXT};"
        f"white-space:pre;animation:{whole:g}s step-end infinite}}"
        ".b{font-weight:bold}"
        "@media (prefers-reduced-motion:reduce){text{animation:none}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"<title>settle trains a model on Python's standard library</title><style>{style}{''.join(rules)}</style>"
        f'<rect width="{width}" height="{height}" rx="8" fill="{GROUND}"/>{chr(10).join(shapes)}</svg>\n'
    )


def spans(row: Row) -> Iterator[str]:
    """Yield the pieces of a line, each at its place and as wide as its letters."""
    column = 0
    for segment in row.segments:
        length = len(segment.text)
        if segment.text.strip():
            style = segment.style
            colour = style.color if style else None
            shade = (
                SHADES.get(colour.name, colour.get_truecolor().hex) if colour else DIM if style and style.dim else ""
            )
            weight = ' class="b"' if style and style.bold else ""
            fill_ = f' fill="{shade}" style="fill:{shade}"' if shade else ""
            place = f'x="{EDGE + CELL * column:.1f}" textLength="{CELL * length:.1f}" lengthAdjust="spacingAndGlyphs"'
            yield f"<tspan {place}{fill_}{weight}>{escape(segment.text)}</tspan>"
        column += length


def models_table() -> str:
    """Return the families that can be tuned, with the models of the catalogue; those of few models in the last row."""
    lines = ["| family | models known by name | such as |", "|---|--:|---|"]
    known = {name: [k for k in catalogue_file().known if k.family == name] for name in families()}
    large = sorted(known, key=lambda name: len(known[name]), reverse=True)[:MOST_FAMILIES]
    rest = [name for name in known if name not in large]
    rows = [([name], known[name]) for name in known if name in large]
    for names, models in [*rows, (rest, [model for name in rest for model in known[name]])]:
        models = sorted(models, key=lambda model: model.shape.parameters)
        title = ", ".join(f"`{name}`" for name in names)
        lines.append(f"| {title} | {len(models)} | {', '.join(map(named, popular(models)))} |")
    return "\n".join(lines) + "\n"


def popular(known: list[KnownModel]) -> list[KnownModel]:
    """Return the smallest models that Ollama has too, from small to large, filled up with the smallest others."""
    there = [model for model in known if model.ollama] + [model for model in known if not model.ollama]
    return sorted(there[:MOST_NAMED], key=lambda model: model.shape.parameters)


def named(model: KnownModel) -> str:
    return f"{model.name} ({model.shape.parameters / 1e9:.2g} B)"


if __name__ == "__main__":
    main()
