"""One run: its curves as they grow, what it says of itself, and how it ended."""

import time
from collections.abc import Mapping, Sequence

from nicegui import ui

from settle.audit.ledger import stop
from settle.base.errors import SettleError, malformed_is_format_error
from settle.base.events import Event, Listing, PhaseStarted, Sample
from settle.base.run import Run as RunFolder
from settle.base.run import present_names
from settle.base.run.result import TONES, Result
from settle.base.words.amounts import amount, duration
from settle.base.words.figures import comparison
from settle.base.words.sentences import NOTHING_KEPT, PHASES, evidence_text, left_text, outlook_text
from settle.jobs.run_reports import summary_of
from settle.jobs.tradeoffs import MeasuredResult, Tradeoff, read_tradeoffs
from settle.studio.chart import Chart
from settle.studio.command_child import start_command
from settle.studio.feed import RunFeed
from settle.studio.layout import Facts, Slot, button, card, failure, words
from settle.studio.pages import Page
from settle.studio.pareto import show_tradeoffs
from settle.studio.run_actions import RunActions, show_files
from settle.studio.table import Table
from settle.studio.visit import Visit, in_thread

LOSSES = ("held-out", "training", "forecast")
SMALL_CHARTS = {
    "learning rate": "Learning rate",
    "tokens/s": "Speed, tokens/s",
    "memory": "Memory, GB",
    "power": "Power, W",
}
MOST_LINES = 80  # of what happened


class Run(Page):
    """A run, live."""

    path = "/runs/{name}"
    title = "{name}"
    within = "/"

    async def build(self, visit: Visit) -> None:
        feed = RunFeed.of(await in_thread(RunFolder.find, visit.path["name"]))
        await feed.update()
        view = _View(feed)
        await view.refresh()
        visit.every_tick(view.refresh)


class _View:
    """The elements of the page that change."""

    def __init__(self, feed: RunFeed) -> None:
        self.feed, self.run = feed, feed.run
        self.version, self.status = -1, ""
        self.num_samples = -1
        with ui.element("div").classes("row"):
            self.state = words("", classes="state")
            self.stop = button("Stop", self._stop)
            self.resume = button("Resume", self._resume, main=True)
            self.learned = ui.link("How it learned", f"/learning/{self.run.path.name}")
            ui.link("Compare", f"/compare?runs={self.run.path.name}")
        self.actions, self.problem = Slot(is_read=False), Slot()
        with ui.element("div").classes("columns level") as top:
            with card("Verdict"):
                self.verdict = Facts()
            with card("Progress") as progress:
                self.now = Facts()
            with card("Settled?") as settled:
                meter = ui.element("div").classes("meter").props('role="meter" aria-valuemin=0 aria-valuemax=100')
                meter.props["aria-label"] = "How near the run is to settled"
                with meter:
                    self.bar = ui.element("div")
                self.gauge, self.evidence = meter, words("")
        self.measured = Slot(is_read=False)
        with ui.element("section").classes("panel") as losses:
            self.losses = Chart("Loss, nats", ("held-out", "training", "expected at the end"), height=320)
        with ui.element("div").classes("columns pairs") as small:
            self.small = {name: _small_chart(name, title) for name, title in SMALL_CHARTS.items()}
        with card("What it writes") as self.writes:
            self.samples = Slot(is_read=False)
        if self.run.command == "shrink":  # which trains nothing
            for part in (progress, settled, losses, small, self.learned):
                part.set_visibility(False)
            top.classes(remove="columns level")
        self.forecast = Slot(is_read=False)
        self.files = Slot(is_read=False)
        with card("What happened"):
            self.lines = Table("What happened", ("time", "event"), empty="Nothing has been reported yet.")

    async def refresh(self) -> None:
        """Send what has changed since the last time."""
        feed = self.feed
        await feed.update()
        status = await feed.status()
        if status != self.status:
            await self._show_state(status)
        elif feed.version == self.version:
            return
        self.version = feed.version
        curves = feed.curves
        self.losses.grow([curves[name] for name in LOSSES], feed.anew)
        for name, chart in self.small.items():
            chart.grow([curves[name]], feed.anew)
        self.now.show(now_facts(feed, status == "running"))
        nearness, text = settled_text(feed, status == "running")
        share = round(100 * (nearness or 0.0))
        self.bar.style(f"width: {share}%")
        self.gauge.props["aria-valuenow"] = share
        self.evidence.text = text or "There is no evidence yet."
        self._show_samples()
        self.lines.show([
            [time.strftime("%H:%M:%S", time.localtime(line.time)), {"text": line.text, "tone": line.tone}]
            for line in list(feed.lines)[-MOST_LINES:]
        ])  # fmt: skip

    async def _show_state(self, status: str) -> None:
        """Show the verdict, the forecast and the files when the run's status has changed."""
        self.status, run = status, self.run
        result: Result | None = None
        fault: SettleError | None = None
        forecast, base = Listing(columns=[], rows=[]), ""
        tradeoffs: list[Tradeoff] = []
        try:
            result = await in_thread(run.result)
            forecast = await in_thread(forecast_of, run, result)
            base = present_names((await in_thread(summary_of, run)).base)
            if run.command == "shrink" and result:
                measured = MeasuredResult("shrink", run.name, run.path / "result.json")
                tradeoffs = await in_thread(read_tradeoffs, measured)
        except SettleError as e:
            fault = e
        state, tone = state_text(self.feed, status, result, fault)
        self.state.text = f"State: {state}"
        self.state.classes(replace=f"state {tone}")
        self.stop.set_visibility(status == "running")
        self.resume.set_visibility(status == "interrupted" and fault is None)
        with self.problem.anew():
            if fault is not None:
                failure(fault)
            elif status == "deleted":
                gone = "This run has been deleted" if self.feed.course.evals else f"This run was {NOTHING_KEPT}"
                words(f"{gone}. What is shown was read before.", classes="warn")
        unfinished = unfinished_facts(self.feed) if status != "finished" else []
        self.verdict.show([fact for fact in result.facts if fact[0] != "files"] if result else unfinished)
        with self.actions.anew():
            if status not in ("running", "deleted"):
                RunActions(run, base, result.files if result else {})
        with self.measured.anew():
            if tradeoffs:
                with card("What was measured"):
                    show_tradeoffs(tradeoffs)
        with self.files.anew():
            if result and result.files:
                with card("Files"):
                    show_files(result.files)
        with self.forecast.anew():
            if forecast.rows:
                with card("Forecast and actual"):
                    Table.of(forecast, "Forecast and actual")

    def _show_samples(self) -> None:
        samples = self.feed.samples
        self.writes.set_visibility(bool(samples) or (self.status != "finished" and self.run.command != "shrink"))
        if len(samples) == self.num_samples:
            return
        self.num_samples = len(samples)
        with self.samples.anew():
            if not samples:
                words("Nothing yet. `--sample TEXT` makes a run write as it learns.", classes="empty")
            for sample in samples:
                words(f"{sample.moment}, step {sample.step:,}", "h3")
                sample_text(sample)

    async def _stop(self) -> None:
        await in_thread(stop, self.run)
        self.state.text = "State: stopping; it saves a checkpoint"

    async def _resume(self) -> None:
        self.state.text = "State: resuming"
        await start_command(["resume", self.run.path.name], _has_phase)
        self.feed.look_again()


def _has_phase(events: Sequence[Event]) -> bool:
    return any(isinstance(event, PhaseStarted) for event in events)


def _small_chart(name: str, title: str) -> Chart:
    with ui.element("section").classes("panel"):
        return Chart(title, (name,), ("tokens",), height=160)


def now_facts(feed: RunFeed, is_running: bool) -> list[tuple[str, str]]:
    """How far it is, and while it runs what it takes, and how long it still will."""
    course, left, usage = feed.course, feed.course.left, feed.usage if is_running else None
    return [
        ("now", PHASES.get(course.left.phase, course.left.phase.replace("_", " ")) if is_running else ""),
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


def forecast_of(run: RunFolder, result: Result | None) -> Listing:
    """Return the forecast next to the actual figures; no rows without one. Raises SettleError."""
    with malformed_is_format_error(run.name):
        forecast: Mapping[str, object] = (result.forecast if result else None) or run.read("forecast.json") or {}
        return comparison(forecast, (result.actual or None) if result else None)


def state_text(feed: RunFeed, status: str, result: Result | None, fault: SettleError | None) -> tuple[str, str]:
    """(text, tone) of a run's state."""
    if fault is not None:
        return "damaged", TONES["damaged"]
    is_failed = status == "interrupted" and feed.course.failure is not None
    text = result.shown_verdict if result is not None else "failed" if is_failed else status
    return text, TONES.get(text, "dim")


def sample_text(sample: Sample) -> None:
    """Show the prompt, and what the model wrote after it; a long text scrolls, by the keyboard too."""
    with words("", "p", "code tall").props("tabindex=0"):
        words(sample.prompt, "strong")
        words(sample.text.rstrip() or " (nothing but blanks)", "span")
