"""The talk on stderr: a live display on a terminal, plain lines anywhere else. Rendered from events alone."""

import math
import sys
import time
from collections.abc import Sequence
from typing import IO, cast

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from settle.base import events as kinds
from settle.base.events import AnswerChanges, Event, PreviewRow, Progress
from settle.base.run.course import RunCourse
from settle.base.run.result import Result
from settle.base.visible import visible
from settle.base.words.amounts import count
from settle.base.words.figures import comparison
from settle.base.words.sentences import (
    ASKED,
    WHY_FITS,
    eval_text,
    event_lines,
    evidence_text,
    flat_text,
    left_text,
    loss_text,
    outlook_text,
    phases_text,
    progress_text,
    run_left_text,
    speed_text,
)
from settle.show.signs import CLOSE, OPEN, SPARKS, SimpleSigns
from settle.show.tables import actual_line, forecast_line, listing, output_files, plan_line, plan_table, verdict_panel

FRAME_SECONDS = 0.1
MOST_SPARKS = 20


class LiveDisplay:
    """Draws the course of a run, or the work in progress, until it is closed; the terminal is then as it was."""

    def __init__(self, console: Console, course: RunCourse) -> None:
        self.console, self.course = console, course
        self.is_on = console.is_terminal and not console.is_dumb_terminal
        self.work: Progress | None = None
        self.work_began = 0.0
        self._live: Live | None = None
        self._drawn_at = 0.0

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def draw(self, now: bool = False) -> None:
        """Show the present state, at most once a frame unless `now`."""
        if not self.is_on:
            return
        at = time.monotonic()
        if not now and at - self._drawn_at < FRAME_SECONDS:
            return
        self._drawn_at = at
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False, transient=True, redirect_stdout=False)
            self._live.start()
        self._live.update(self.picture(), refresh=True)

    def picture(self) -> RenderableType:
        """Return what is shown at this moment; no line is wider than the terminal."""
        width = self._width()
        if self.work is not None:
            work = self.work
            share = work.done / work.total if work.total else None
            return _bar(work.what, share, progress_text(work, self.work_began, run_left_text(self.course)), width)
        course = self.course
        if course.step is None and not course.evals:
            return Text("")
        label = "settling" if course.state == "decaying" else "training"
        lines: list[RenderableType] = [_bar(label, course.left.fraction(), " · ".join(left_text(course)), width)]
        if course.evals:
            lines.append(self._row(eval_text(course.evals[-1]), self._sparks()))
        if course.forecasts:
            lines.append(self._row(outlook_text(course)))
        if course.step:
            parts = [f"train {loss_text(course.step.loss)}", f"{count(course.left.tokens)} tokens", *speed_text(course)]
            lines.append(self._row(" · ".join([*parts, f"step {course.left.step:,}"])))
        if course.state and course.state != "decaying":
            lines.append(_bar("settled", course.nearness or 0.0, evidence_text(course, self.console.width), width))
        return Group(*lines)

    def _width(self) -> int:
        """Leaves room for the ^C that a terminal writes: if it wrapped, the display could not be removed."""
        return max(1, self.console.width - 3)

    def _row(self, text: str, after: str = "") -> Text:
        indent = " " * (9 if self.console.width >= WHY_FITS else 2)
        row = Text(indent + text + ("  " + after if after else ""), no_wrap=True, overflow="ellipsis")
        row.truncate(self._width(), overflow="ellipsis")
        return row

    def _sparks(self) -> str:
        losses = [e.loss for e in self.course.evals if math.isfinite(e.loss)]
        if len(losses) < 3:
            return ""
        wanted = min(len(losses), MOST_SPARKS)
        losses = [losses[round(i * (len(losses) - 1) / (wanted - 1))] for i in range(wanted)]
        low, high = min(losses), max(losses)
        return "".join(SPARKS[round((loss - low) / ((high - low) or 1.0) * (len(SPARKS) - 1))] for loss in losses)


def _bar(label: str, share: float | None, text: str, width: int) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True, min_width=8)
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    after = Text(f"{100 * share:3.0f} %  {text}" if share is not None else text)
    name = max(8, len(label))
    room = max(4, min(40, width - name - 2 - len(after)))
    after.truncate(max(1, width - name - 2 - room), overflow="ellipsis")
    grid.add_row(Text(label, "bold"), ProgressBar(total=1.0, completed=share or 0.0, width=room, pulse=False), after)
    return grid


# characters of a piece that are shown: from its beginning, and from its end
_LEARNED, _GIVEN = (700, 200), (300, 200)
_ANSWER = 280  # characters of an answer
_BRIEF_ROWS = 2  # rows of changed answers, on two lines each, where not every detail is asked for


def preview_text(rows: Sequence[PreviewRow], in_colour: bool) -> Text:
    """Previews (see `settle.data.rows.prepare.Preview`) one under the other."""
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


def answer_changes_table(event: AnswerChanges, width: int, is_whole: bool) -> RenderableType:
    """Return the answers that changed most: what was asked and wanted, and below it both answers side by side.

    is_whole: all of them, else the first ones, each on two lines, and where the others are.
    """
    table = Table(title="the answers that changed most", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for name in (event.base, event.tuned):
        table.add_column(name, overflow="fold" if is_whole else "ellipsis", no_wrap=not is_whole, ratio=1)
    table.expand, table.width, table.show_edge = True, min(width, 140), is_whole
    if not is_whole:
        where = f"`settle runs show {event.run} -v` shows" if event.run else "-v shows"
        left = len(event.rows) - _BRIEF_ROWS
        more = f"{left} more, and " if left > 0 else ""
        table.caption = Text(f"{where} {more}the whole texts")
        table.caption_justify, table.caption_style = "left", ""
    for row in event.rows if is_whole else event.rows[:_BRIEF_ROWS]:
        asked = f"row {row.number} ({row.gain:+.2f}): {flat_text(row.question, ASKED)}"
        table.add_row(Text(asked, "bold"), Text(f"wanted: {flat_text(row.reference, ASKED)}", "dim"))
        table.add_row(Text(flat_text(row.base, _ANSWER)), Text(flat_text(row.tuned, _ANSWER)), end_section=True)
    return table


def _shortened(text: str, first: int, last: int) -> str:
    if len(text) <= first + last:
        return text
    return f"{text[:first]} … {len(text) - first - last:,} characters … {text[-last:]}"


# Where there is no live display: columns, and seconds between two lines about the same work (a long run says less).
PLAIN_WIDTH = 100
PLAIN_SECONDS = 60.0
PLAIN_SHARE = 0.25


CHECKED = {"proof": "checks of the recipe", "gate": "checks of the exported file"}


class Stderr(Console):
    """A console that raises when its reader has gone; rich would end the program."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def notebook_console() -> Console:
    """Return a console of plain lines on stdout: a notebook shows stderr as errors, and escapes of a cursor as text."""
    return Console(file=sys.stdout, force_jupyter=False, force_terminal=False, color_system=None, highlight=False)


class Talk:
    """Says on one stream what happens. `show` takes every event and ignores the kinds that nobody needs to see.

    is_verbose: each check, each number of the plan with its reason, and each evaluation. What is not as it should be is
    always shown.
    """

    def __init__(self, console: Console | None = None, is_verbose: bool = False) -> None:
        self.is_verbose = is_verbose
        self.console = console or Stderr(stderr=True, highlight=False)
        if not self.console.encoding.lower().startswith("utf"):
            self.console.file = cast(IO[str], SimpleSigns(self.console.file, self.console.encoding))
        if not self.console.is_terminal:
            self.console.width = PLAIN_WIDTH
        self.course = RunCourse(keep_steps=False)
        self.live = LiveDisplay(self.console, self.course)
        self._line_times: dict[str, float] = {}  # when a line about each kind of work was last written, or it began
        self._written: set[str] = set()  # work in progress that has a line
        self._state: str | None = None if is_verbose else "improving"  # of the latest judgement
        self._passed: dict[str, int] = {}  # checks that passed and were not shown one by one

    def show(self, event: Event) -> None:
        self.course.add(event)
        match event:
            case kinds.Progress() | kinds.Check():
                pass
            case _:
                self._show_passed()
        match event:
            case kinds.Progress():
                self._show_progress(event)
            case kinds.Eval() if event.whole:
                self._show_detail(event)
            case kinds.Step() | kinds.Eval() | kinds.SettledEvidence():
                self._show_training(event)
            case kinds.DecayStarted():
                self._show_detail(event)
                self.live.draw(now=True)
            case kinds.Say() if event.is_detail:
                self._show_detail(event)
            case kinds.Sample():
                self._show_sample(event)
            case kinds.ProofCheck():
                self._show_check(event, "proof")
            case kinds.GateCheck():
                self._show_check(event, "gate")
            case kinds.ResultReady():
                self._show_result(event)
            case _:
                self._show_lines(event)
                self._show_table(event)

    def close(self) -> None:
        """Take the live display away; the terminal is as it was."""
        self._show_passed()
        self.live.close()

    def _line(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style), soft_wrap=not self.live.is_on)

    def _show_lines(self, event: Event) -> None:
        for text, tone in event_lines(event):
            self._line(f"! {text}" if tone else text, "yellow" if tone else "")

    def _show_detail(self, event: Event) -> None:
        if self.is_verbose:
            self._show_lines(event)

    def _show_table(self, event: Event) -> None:
        width = self.console.width
        match event:
            case kinds.PlanReady() if event.values:
                self.is_verbose |= event.full
                if self.is_verbose:
                    self.console.print(plan_table(event, width))
                else:
                    self._line(plan_line(event))
            case kinds.ForecastReady() if event.forecast and not self.is_verbose:
                self._line(forecast_line(event))
            case kinds.ForecastReady() if event.forecast:
                self.console.print(listing(comparison(event.forecast, None), width))
                if event.phases:
                    self._line(phases_text(event.phases))
            case kinds.RowPreviews():
                console = self.console
                in_colour = console.is_terminal and console.color_system is not None and not console.no_color
                console.print(preview_text(event.rows, in_colour), soft_wrap=not self.live.is_on)
            case kinds.AnswerChanges():
                self.console.print(answer_changes_table(event, width, self.is_verbose))

    def _show_sample(self, event: kinds.Sample) -> None:
        """Show the prompt, and what the model wrote after it."""
        when = f"{event.moment}, step {event.step:,}: "
        if self.is_verbose:
            text = Text.assemble((when, "dim"), (visible(event.prompt), "bold"), visible(event.text), "\n")
        else:  # its beginning, on one line
            beginning = event.text.replace("\\n", " ")  # the sign of a line break
            written = flat_text(beginning, max(9, self.console.width - len(when) - len(event.prompt) - 2))
            text = Text.assemble((when, "dim"), (visible(event.prompt), "bold"), " ", written)
        self.console.print(text, soft_wrap=not self.live.is_on)

    def _show_check(self, event: kinds.Check, of: str) -> None:
        if event.passed and not self.is_verbose:
            self._passed[of] = self._passed.get(of, 0) + 1
            return
        mark, style = ("✓", "green") if event.passed else ("✗", "bold red")
        text = Text.assemble((mark, style), f" {of}: {event.check}")
        if event.detail:
            text.append(f" – {event.detail}", "dim")
        self.console.print(text, soft_wrap=not self.live.is_on)

    def _show_passed(self) -> None:
        """Count the checks that passed, on one line."""
        passed, self._passed = self._passed, {}
        for of, number in passed.items():
            text = f" {of}: {number} {CHECKED[of]} passed" + "; -v shows each" * (number > 1)
            self.console.print(Text.assemble(("✓", "green"), text), soft_wrap=not self.live.is_on)

    def _show_result(self, event: kinds.ResultReady) -> None:
        self.close()
        if "verdict" not in event.result:
            return
        result, width = Result.model_validate(event.result), self.console.width
        if result.forecast and result.actual:
            figures = comparison(result.forecast, result.actual, width)
            if self.is_verbose:
                self.console.print(listing(figures, width))
            elif text := actual_line(figures):
                self._line(text)
            if figures.note:
                self._line(f"! {figures.note}", "yellow")
        self.console.print(verdict_panel(result, width, has_border=self.is_verbose), soft_wrap=not self.live.is_on)
        if files := output_files(result):
            self.console.print(Text(files), soft_wrap=True)

    def _show_progress(self, event: kinds.Progress) -> None:
        live = self.live
        if live.work is None or live.work.what != event.what:
            live.work_began = event.time
            if event.total is not None and not self.is_verbose:  # short work has no line of its own
                self._line_times[event.what] = event.time
        live.work = event
        ended = event.total is not None and event.done >= event.total
        says_end = self.is_verbose or event.what in self._written
        if not live.is_on and (ended and says_end or self._is_due(event.what, event.time)):
            self._line(f"{event.what}: {progress_text(event, live.work_began, run_left_text(self.course))}")
            self._written.add(event.what)
        if ended:
            live.work = None
        live.draw(now=ended)

    def _show_training(self, event: kinds.Step | kinds.Eval | kinds.SettledEvidence) -> None:
        """Show a line now and then; on a terminal the display says it all."""
        course = self.course
        is_due = not self.live.is_on and self._is_due(event.kind, event.time)
        match event:
            case kinds.Step():
                self.live.work = None
                if is_due:
                    parts = [f"step {event.step:,}", f"{count(event.tokens)} tokens", f"loss {loss_text(event.loss)}"]
                    held_out = [f"held-out {eval_text(course.evals[-1])}"] if course.evals else []
                    self._line(" · ".join([*parts, *held_out, *speed_text(course), *left_text(course)]))
            case kinds.Eval() if is_due and self.is_verbose:
                expected = [text] if (text := outlook_text(course)) else []
                self._line(" · ".join([f"held-out after {count(event.tokens)} tokens: {eval_text(event)}", *expected]))
            case kinds.SettledEvidence() if not self.live.is_on:
                if (is_due and self.is_verbose) or self._state != event.state:
                    self._line(f"{event.state}: {evidence_text(course, self.console.width)}")
                self._state = event.state
        self.live.draw(now=event.kind != "step")

    def _is_due(self, what: str, at: float) -> bool:
        pause = max(PLAIN_SECONDS, PLAIN_SHARE * self.course.left.spent())
        if at - self._line_times.get(what, -pause) < pause:
            return False
        self._line_times[what] = at
        return True
