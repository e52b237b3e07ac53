"""The live display of a terminal: bars and the latest figures, redrawn in place."""

import math
import time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from settle.base.events import Progress
from settle.base.run.course import RunCourse
from settle.base.words.amounts import count
from settle.base.words.sentences import (
    WHY_FITS,
    eval_text,
    evidence_text,
    left_text,
    loss_text,
    outlook_text,
    progress_text,
    seconds_left,
    speed_text,
)
from settle.show.signs import SPARKS

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
            bar = _bar(work.what, share, progress_text(work, self.work_began, seconds_left(self.course)), width)
            left = [text for text in left_text(self.course) if "left" in text]
            return Group(bar, self._row(f"the run: {left[0]}")) if left and self.course.left.phase else bar
        course = self.course
        if course.step is None and not course.evals:
            return Text("")
        label = "settling" if course.state == "decaying" else "training"
        lines: list[RenderableType] = [_bar(label, course.left.fraction(), " · ".join(left_text(course)), width)]
        if course.evals:
            lines.append(self._row(eval_text(course.evals[-1]), self._sparks()))
        if course.forecasts:
            lines.append(self._row(outlook_text(course)))
        train_loss = course.step.loss if course.step else None
        parts = [f"train {loss_text(train_loss)}", f"{count(course.left.tokens)} tokens", *speed_text(course)]
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
