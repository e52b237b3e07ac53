"""A run as one self-contained HTML file to share: verdict, chart, figures, settings, data and machine.

It holds no script and loads nothing, is light or dark as its reader's system, and names no folder of this machine.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from settle.base.errors import ResourceError, UsageError, malformed_is_format_error
from settle.base.event_log import Events, read_events
from settle.base.events import ResultReady, RowSummary, Sample, Say, TextSummary
from settle.base.files import JsonObject, write_atomic
from settle.base.run import Run
from settle.base.run.course import RunCourse
from settle.base.run.result import TONES, Figure, Result, figures_of, loss_unit
from settle.base.version import __version__
from settle.base.visible import html_table, visible
from settle.base.words.amounts import amount, count, when
from settle.base.words.figures import comparison, flat, listed
from settle.base.words.sentences import flat_text, rows_lines, text_line
from settle.evaluate.report.curves import finite, stretches

MOST_SAMPLES, MOST_ANSWERS = 3, 8
LONGEST_VALUE, LONGEST_TEXT = 160, 1000  # characters of a setting, and of an answer or a sample
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 960, 320, 56, 10, 28  # of the picture, and its margins
INNER, TALL = WIDTH - LEFT - 16, HEIGHT - TOP - BOTTOM
Point = tuple[float, float]  # tokens, loss
INCIDENTAL = ("origin.", "why.", "versions.", "machine.", "proof", "asked.", "reaches", "corpus", "version")
FOLDER = re.compile(r"(?<![^ ])[/~][^,]*/(?=[^,/])")  # of a path
STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --panel: #fff; --line: #d5d9e0; --text: #1b2028; --dim: #566072;
 --accent: #0a58c2; --second: #b3460f; --good: #18713a; --bad: #b3261e; --warn: #8a5300; }
@media (prefers-color-scheme: dark) { :root { --page: #12151a; --panel: #1a1f26; --line: #343c48; --text: #e6e9ee;
 --dim: #a3adbd; --accent: #7db3ff; --second: #ffa270; --good: #6fce8f; --bad: #ff9188; --warn: #f0b860; } }
body { background: var(--page); color: var(--text); font: 1rem/1.5 system-ui, sans-serif; margin: 0; }
main { max-width: 64rem; margin: 0 auto; padding: 1.5rem 1rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 0.25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.125rem; margin: 0 0 0.75rem; } p { margin: 0 0 0.75rem; white-space: pre-wrap; overflow-wrap:
 anywhere; }
section { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 1rem 1.25rem;
 margin: 0 0 1rem; }
section > :last-child { margin-bottom: 0; } .dim, th { color: var(--dim); } .state { font-weight: 600; }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { border-bottom: 1px solid var(--line); padding: 0.375rem 0.75rem 0.375rem 0; overflow-wrap: anywhere;
 font-weight: 400; }
td:first-child { color: var(--dim); width: 12rem; } tr:last-child > td { border-bottom: 0; }
summary { cursor: pointer; font-weight: 600; padding: 0.25rem 0; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--dim); font-size: 12px; }
path, line { fill: none; } .grid { stroke: var(--line); } .held { stroke: var(--accent); stroke-width: 2; }
.training { stroke: var(--second); stroke-dasharray: 7 4; } .expected { stroke: var(--good); stroke-dasharray: 2
 3; stroke-width: 2; }
rect.expected { fill: var(--good); stroke: none; opacity: 0.16; } .legend span { margin-right: 1.5rem; }
.of-held { color: var(--accent); } .of-training { color: var(--second); }
.wide { overflow-x: auto; } .wide > * { min-width: 34rem; }
@media (max-width: 40rem) { .plain td { display: block; border: 0; padding: 0; width: auto; }
 .plain tr { display: block; padding: 0.375rem 0; border-bottom: 1px solid var(--line); } }
"""
HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>%s</title><style>%s</style></head><body><main>
"""


def share_run(names: Sequence[str], out: Path | None, events: Events) -> None:
    """Write the page of one run, by default as NAME.html in the current folder. Raises UsageError, ResourceError."""
    if len(names) != 1:
        raise UsageError("one run is shared at a time", "`settle runs share NAME`")
    run = Run.find(names[0])
    path, page = out or Path(f"{run.name}.html"), run_page(run)
    try:
        write_atomic(path, page)
    except OSError as e:
        raise ResourceError(f"cannot write {path}: {e.strerror}", "choose another place with --out") from None
    size = len(page.encode())
    what = "the run's figures and settings, its samples, and the rows whose answers it compared"
    events.emit(Say(text=f"wrote {path} ({amount(size, 'bytes')}), which shows {what}"))
    events.emit(ResultReady(result={"path": str(path), "bytes": size}))


def run_page(run: Run) -> str:
    """Return the HTML. Raises SettleError where the run's files are damaged."""
    with malformed_is_format_error(run.name):
        return HEAD % (_escaped(run.name), STYLE) + "".join(_parts(run)) + "</main></body></html>\n"


def _parts(run: Run) -> Iterator[str]:
    plan: JsonObject = run.read("plan.json") or {}
    result, happened = run.result(), list(read_events(run.events))
    course = RunCourse.of(happened)
    forecast: JsonObject = (result.forecast if result else {}) or run.read("forecast.json") or {}
    state = result.shown_verdict if result else run.status
    yield f'<h1>{_escaped(run.name)}</h1><p class="state {TONES.get(state, "dim")}">{_escaped(state)}</p>'
    facts = [fact for fact in result.facts if fact[1] and fact[0] != "files"] if result else []
    yield _section("Verdict", _table(facts) if facts else _paragraph("The run is not finished."))
    if course.evals:
        unit = loss_unit(plan.get("objective"))
        yield _section(f"Loss in {unit}, by tokens", _chart(course, figures_of(forecast).get("loss")))
    if figures_of(forecast):
        listing = comparison(forecast, (result.actual or None) if result else None)
        yield _section("Forecast and actual", _table(listed(listing)[0], listing.columns))
    yield from _made(result)
    samples, data = list[Sample](), list[str]()
    for event in happened:
        match event:
            case Sample():
                samples.append(event)
            case TextSummary():
                data = [text_line(event)]
            case RowSummary():
                data = rows_lines(event)
    if samples:
        shown = {0, len(samples) // 2, len(samples) - 1}
        texts = [(f"{s.moment}, step {s.step:,}", _cut(s.prompt + s.text)) for s in (samples[i] for i in sorted(shown))]
        yield _section("What it writes", _table(texts))
    yield from _setting(plan, data)
    yield f'<p class="dim">settle {__version__} · {when(course.started)} · {_escaped(run.path.name)}</p>'


def _made(result: Result | None) -> Iterator[str]:
    """Yield the files that were compared, of a run that shrank a model, and the answers that changed."""
    extra: JsonObject = (result.model_extra or {}) if result else {}
    files = [file for file in (*(extra.get("candidates") or ()), extra.get("chosen")) if file and file["divergence"]]
    if files:
        rows = [(f["name"], amount(f["bytes"], "bytes"), f"{f['divergence']['kl']['value']:.3g}") for f in files]
        yield _section("Files compared", _table(rows, ("file", "size", "KL from the whole model, nats per token")))
    compared = (result.comparison if result else None) or {}
    if changed := (compared.get("changed") or ())[:MOST_ANSWERS]:
        answers = [[_cut(row[key]) for key in ("question", "base", "tuned")] for row in changed]
        columns = ("question", str(compared.get("base")), str(compared.get("tuned")))
        yield _section("Answers that changed most", _table(answers, columns))


def _setting(plan: JsonObject, data: Sequence[str]) -> Iterator[str]:
    """Yield the data, the settings and the machine."""
    if data:
        yield _section("Data", "".join(map(_paragraph, data)))
    asked, settings = flat(plan.get("asked") or {}), flat(plan)
    origin: JsonObject = plan.get("origin") or {}
    given = [(name, _value(asked[name])) for name, by in origin.items() if by in ("asked", "recipe") and name in asked]
    every = [(name, _value(v)) for name, v in settings.items() if not name.startswith(INCIDENTAL) and v is not None]
    if every:
        folded = f"<details><summary>All {len(every)} values</summary>{_table(every)}</details>"
        yield _section("Settings", (_table(given) if given else "") + folded)
    machine: JsonObject = plan.get("machine") or {}
    memory = (machine.get("memory") or {}).get("total")
    versions: JsonObject = plan.get("versions") or {}
    facts = [
        ("system", machine.get("system")),
        ("processor", machine.get("processor")),
        ("cores", (machine.get("cores") or {}).get("usable")),
        ("memory", memory and amount(memory, "bytes")),
        ("accelerator", (machine.get("accelerator") or {}).get("name")),
        ("versions", " · ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    if known := [(name, str(value)) for name, value in facts if value]:
        yield _section("Machine", _table(known))


# --- the picture ---


@dataclass(frozen=True)
class _Scale:
    """Where a number of tokens and a loss lie in the picture."""

    low: float
    high: float
    last: float

    def x(self, tokens: float) -> float:
        return LEFT + INNER * tokens / self.last

    def y(self, loss: float) -> float:
        return TOP + TALL * (self.high - loss) / (self.high - self.low)

    def level(self, name: str, loss: float) -> str:
        y = f"{self.y(loss):.1f}"
        return f'<line class="{name}" x1="{LEFT}" x2="{LEFT + INNER}" y1="{y}" y2="{y}"/>'

    def path(self, name: str, points: Sequence[Point]) -> str:
        places = "L".join(f"{self.x(tokens):.1f},{self.y(loss):.1f}" for tokens, loss in points)
        return f'<path class="{name}" d="M{places}"/>' if points else ""

    def grid(self) -> Iterator[str]:
        for loss in _ticks(self.low, self.high, 5):
            yield self.level("grid", loss)
            yield f'<text x="{LEFT - 8}" y="{self.y(loss) + 4:.1f}" text-anchor="end">{loss:.4g}</text>'
        for tokens in _ticks(0, self.last, 7):
            yield f'<text x="{self.x(tokens):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{count(tokens)}</text>'


def _chart(course: RunCourse, expected: Figure | None) -> str:
    """Return the losses by tokens as SVG: held-out ones fill it, training ones are cut off where they leave it."""
    held, training = finite(course.evals, "loss"), finite(course.steps, "loss")
    band = (expected.low, expected.value, expected.high) if expected else ()
    ends = [end for end in (*(e.loss for e in held), *band) if end is not None and math.isfinite(end)] or [0.0]
    margin = 0.05 * (max(ends) - min(ends)) or 0.05 * abs(ends[0]) or 1.0
    last = max([*(e.tokens for e in held), *(s.tokens for s in training)], default=1) or 1
    scale, inside, legend = _Scale(min(ends) - margin, max(ends) + margin, last), list[str](), list[str]()
    if expected and expected.low is not None and expected.value is not None and expected.high is not None:
        top, tall = scale.y(expected.high), scale.y(expected.low) - scale.y(expected.high)
        inside.append(f'<rect class="expected" x="{LEFT}" width="{INNER}" y="{top:.1f}" height="{tall:.1f}"/>')
        inside.append(scale.level("expected", expected.value))
        interval = f"{expected.low:.4g} – {expected.high:.4g}"
        legend.append(f'<span class="good">··· expected at the end {expected.value:.4g} ({interval})</span>')
    for name, title, events in (("training", "- - training", training), ("held", "— held-out", held)):
        tokens, losses, *_ = stretches(events)
        inside.append(scale.path(name, [*zip(tokens, losses, strict=True)]))
        legend += [f'<span class="of-{name}">{title} {losses[-1]:.4g}</span>'] if losses else []
    clip = f'<clipPath id="in"><rect x="{LEFT}" y="{TOP}" width="{INNER}" height="{TALL}"/></clipPath>'
    drawn = f'{clip}{"".join(scale.grid())}<g clip-path="url(#in)">{"".join(inside)}</g>'
    title = (
        f"Held-out loss from {held[0].loss:.4g} to {held[-1].loss:.4g} after {count(last)} tokens" if held else "Loss"
    )
    picture = _wide(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">{drawn}</svg>')
    return f'{picture}<p class="legend">{"".join(legend[::-1])}</p>'


def _ticks(low: float, high: float, number: int) -> list[float]:
    """Return round numbers between two ends, about as many as asked for."""
    rough = (high - low) / number
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


# --- text ---


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{_escaped(title)}</h2>{inside}</section>\n"


def _wide(inside: str) -> str:
    """Return a part that scrolls sideways where there is no room for it."""
    return f'<div class="wide" tabindex="0">{inside}</div>'


def _table(rows: Sequence[Sequence[str]], columns: Sequence[str] = ()) -> str:
    table = html_table(rows, columns)
    return _wide(table) if columns else f'<div class="plain">{table}</div>'


def _paragraph(text: str) -> str:
    return f"<p>{_escaped(text)}</p>"


def _escaped(text: str) -> str:
    return escape(visible(text))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def _value(value: object) -> str:
    """Return a setting as text; of a path of this machine, the name alone."""
    return flat_text(FOLDER.sub("", amount(value)), LONGEST_VALUE)
