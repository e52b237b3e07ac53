"""Runs over each other: their losses by tokens, time or energy, and the settings in which they differ."""

from collections.abc import Mapping, Sequence
from urllib.parse import quote

from nicegui import ui

from settle.base.errors import SettleError
from settle.base.run import Run
from settle.base.words.amounts import amount, number
from settle.base.words.figures import flat
from settle.jobs.run_reports import summary_of
from settle.studio.chart import AXES, Chart
from settle.studio.feed import RunFeed
from settle.studio.layout import START, card, chips, empty_state, words
from settle.studio.pages import Page
from settle.studio.pages.runs import SUMMARY, summary_cells
from settle.studio.table import Cell, Table
from settle.studio.visit import Visit, in_thread

MOST_RUNS = 6  # that colour and dash can tell apart
MOST_OFFERED = 40
CURVES = {"bits per byte": "Held-out text, bits per byte", "training": "Training loss, nats per token"}
NOTE = (
    "Losses per token compare only runs with one tokenizer; bits per byte compare all. Energy is the run's time at its "
    "average power; before the end, at that of its forecast."
)


class Compare(Page):
    """Up to six runs."""

    path = "/compare"
    title = "Compare runs"
    place = 60

    async def build(self, visit: Visit) -> None:
        offered = list(reversed(await in_thread(Run.all)))
        asked = [name for name in visit.query.get("runs", "").split(",") if name]
        runs = [run for name in asked for run in offered if name in (run.path.name, run.name)][:MOST_RUNS]
        chosen = [run.path.name for run in runs]
        if not offered:
            empty_state("No runs to compare yet: start two that differ in one setting.", ("New run", START))
            return
        chips("Runs to compare", [_chip(run, chosen) for run in offered[:MOST_OFFERED]])
        if not runs:
            words("Choose two runs or more; each is a line in one picture.", classes="empty")
            return
        names = _unique_names(runs)
        feeds = [RunFeed.of(run) for run in runs]
        watts = [await in_thread(average_watts, run) for run in runs]
        losses = {}
        for curve, title in CURVES.items():
            with ui.element("section").classes("panel"):
                losses[curve] = Chart(title, names, AXES, height=300)
        words(NOTE, classes="dim")
        await _tables(runs, names)

        async def refresh() -> None:
            for feed in feeds:
                await feed.update()
            anew = sum(feed.anew for feed in feeds)
            for curve, chart in losses.items():
                chart.grow([feed.curves[curve] for feed in feeds], anew, watts)

        await refresh()
        visit.every_tick(refresh)


def _chip(run: Run, chosen: Sequence[str]) -> tuple[str, str, bool]:
    """Return a link that adds a run to those that are compared, or removes it."""
    name = run.path.name
    rest = [other for other in chosen if other != name] if name in chosen else [*chosen, name]
    return run.name, f"/compare?runs={quote(','.join(rest), safe=',')}", name in chosen


def _unique_names(runs: Sequence[Run]) -> list[str]:
    """Names of runs; with the date and the id where two have one name."""
    names = [run.name for run in runs]
    return [run.name if names.count(run.name) == 1 else run.path.name for run in runs]


async def _tables(runs: Sequence[Run], names: Sequence[str]) -> None:
    """How they ended, and the settings in which they differ."""
    with card("How they ended"):
        columns = ("run", *SUMMARY, "energy")
        rows = [await in_thread(_row, run, name) for run, name in zip(runs, names, strict=True)]
        Table("How they ended", columns, range(2, 7), rows=rows)
    if len(runs) < 2:
        words("Choose a second run to see which settings differ.", classes="empty")
        return
    differing = await in_thread(differing_settings, runs)
    with card("Settings that differ"):
        Table("Settings that differ", ("setting", *names), empty="They differ in no setting.", rows=differing)


def _row(run: Run, name: str) -> list[Cell]:
    summary = summary_of(run)
    link: Cell = {"text": name, "href": f"/runs/{quote(run.path.name)}"}
    return [link, *summary_cells(summary), amount(summary.energy, "J")]


# what differs in any two runs, and says nothing about why one is better
INCIDENTAL = ("origin.", "why.", "versions.", "machine.", "proof", "asked.name", "loop.seconds_", "loop.step_seconds",
              "loop.evaluation_cost")  # fmt: skip
UNSET = "–"
MOST_VALUE = 200  # characters of a value that are shown


def differing_settings(runs: Sequence[Run]) -> list[list[str]]:
    """Rows of the settings that differ between the runs: the key, then the value of each.

    First those that all have. Of runs of several kinds, those that only one has say nothing.
    """
    plans = [flat(_read(run, "plan.json")) for run in runs]
    keys = list(dict.fromkeys(key for plan in plans for key in plan if not key.startswith(INCIDENTAL)))
    rows = [[key, *(_text(plan[key]) if key in plan else UNSET for plan in plans)] for key in keys]
    differing = [row for row in rows if len({*row[1:]}) > 1]
    least = 1 if len({run.command for run in runs}) == 1 else 2
    return sorted((row for row in differing if len(runs) - row.count(UNSET) >= least), key=lambda row: UNSET in row)


def average_watts(run: Run) -> float | None:
    """Energy by time: the actual ones, or those of the forecast before the end; None where they are not known."""
    for file, part in (("result.json", "actual"), ("forecast.json", None)):
        values = _read(run, file)
        figures = values.get(part) if part else values
        if isinstance(figures, Mapping):
            energy, seconds = (number(_value(figures.get(name))) for name in ("energy", "time"))
            if energy is not None and seconds:
                return energy / seconds
    return None


def _read(run: Run, file: str) -> Mapping[str, object]:
    try:
        values = run.read(file)
    except SettleError:  # it is compared by what can be read
        return {}
    return values if isinstance(values, Mapping) else {}


def _value(figure: object) -> object:
    return figure.get("value") if isinstance(figure, Mapping) else figure


def _text(value: object) -> str:
    text = amount(value)
    return text if len(text) <= MOST_VALUE else text[: MOST_VALUE - 1] + "…"
