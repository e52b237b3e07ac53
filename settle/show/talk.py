"""The talk on stderr: a live display on a terminal, plain lines anywhere else. Rendered from events alone."""

import time
from typing import IO, Any, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from settle.base.events import Event
from settle.show.amounts import amount, count, duration
from settle.show.progress import Standing, number
from settle.show.rows import CLOSE, OPEN, changed_table, preview_text, rows_lines
from settle.show.tables import WHY_FITS, comparison, gain_text, listing, made, plan_table, verdict_panel

# Where there is no live display: columns, and seconds between two lines about the same work (a long run talks less).
PLAIN_WIDTH = 100
PLAIN_SECONDS = 10.0
PLAIN_SHARE = 0.05
FRAME_SECONDS = 0.1
SPARKS = "▁▂▃▄▅▆▇█"
MOST_SPARKS = 20
FEW = 10


class Simple:
    """A stream whose encoding is not Unicode, given simpler signs for those it cannot write."""

    SIGNS = str.maketrans(
        {"·": "|", "±": "+-", "–": "-", "≤": "<=", "…": "...", "✓": "ok", "✗": "FAILED", "→": "->"}
        | {OPEN: "[[", CLOSE: "]]"}
        | {spark: str(i) for i, spark in enumerate(SPARKS)}
    )

    def __init__(self, stream: IO[str], encoding: str) -> None:
        self._encoding = encoding
        self._stream = stream

    def write(self, text: str) -> int:
        simple = text.translate(self.SIGNS).encode(self._encoding, "replace").decode(self._encoding)
        return self._stream.write(simple)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Stderr(Console):
    """A console that says so when its reader has gone; rich would end the program."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Talk:
    """Says on one stream what happens. `hear` takes every event; kinds it does not know are none of its business."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Stderr(stderr=True, highlight=False)
        if not self.console.encoding.lower().startswith("utf"):
            self.console.file = cast(IO[str], Simple(self.console.file, self.console.encoding))
        if not self.console.is_terminal:
            self.console.width = PLAIN_WIDTH
        self.is_live = self.console.is_terminal and not self.console.is_dumb_terminal
        self.standing = Standing()
        self._live: Live | None = None
        self._work: Event | None = None  # the progress event on display
        self._work_began = 0.0
        self._said_at: dict[str, float] = {}
        self._drawn_at = 0.0
        self._state: str | None = None  # of the latest judgement

    def hear(self, event: Event) -> None:
        self.standing.hear(event)
        handler = getattr(self, f"_on_{event['kind']}", None)
        if handler is not None:
            handler(event)

    def close(self) -> None:
        """Take the live display away; the terminal is as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    # --- words ---

    def _line(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style), soft_wrap=not self.is_live)

    def _on_say(self, event: Event) -> None:
        self._line(event["text"])

    def _on_resumed(self, event: Event) -> None:
        self._line(f"going on from step {event['step']:,}")

    def _on_warn(self, event: Event) -> None:
        self._line(f"! {event['text']}", "yellow")

    def _on_rows(self, event: Event) -> None:
        for line in rows_lines(event):
            self._line(line)

    def _on_preview(self, event: Event) -> None:
        in_colour = self.console.is_terminal and self.console.color_system is not None and not self.console.no_color
        self.console.print(preview_text(event["rows"], in_colour), soft_wrap=not self.is_live)

    def _on_changed(self, event: Event) -> None:
        self.console.print(changed_table(event, self.console.width))

    def _on_plan(self, event: Event) -> None:
        if "values" in event:
            self.console.print(plan_table(event, self.console.width))

    def _on_forecast(self, event: Event) -> None:
        forecast = event.get("forecast") or {k: v for k, v in event.items() if isinstance(v, dict)}
        if forecast:
            self.console.print(listing(comparison(forecast, None), self.console.width))

    def _on_proof(self, event: Event) -> None:
        self._check(event, "proof")

    def _on_gate(self, event: Event) -> None:
        self._check(event, "gate")

    def _check(self, event: Event, of: str) -> None:
        if "passed" not in event:
            return
        name, detail = event.get("check", of), event.get("detail", "")
        mark, style = ("✓", "green") if event["passed"] else ("✗", "bold red")
        text = Text.assemble((mark, style), f" {of}: {name}")
        if detail:
            text.append(f" – {detail}", "dim")
        self.console.print(text, soft_wrap=not self.is_live)

    def _on_decay(self, event: Event) -> None:
        why = {"settled": "the model has settled", "budget": "the budget is nearly spent"}.get(
            event["why"], event["why"]
        )
        self._line(f"{why}: the learning rate falls to zero until step {event['until']:,}", "bold")
        self._draw(now=True)

    def _on_rollback(self, event: Event) -> None:
        text = f"step {event.get('step')} went wrong (loss {event.get('loss')}): back to step {event.get('to_step')}"
        for batch in event.get("batches", [])[-1:]:
            rows = batch.get("rows") or [{}]
            text += f"; batch {batch.get('position')} is left out, which begins with {rows[0].get('source')}"
        self._line(f"! {text}", "yellow")

    def _on_result(self, event: Event) -> None:
        self.close()
        result, width = event["result"], self.console.width
        if "verdict" not in result:
            return
        if result.get("forecast") and result.get("actual"):
            self.console.print(listing(comparison(result["forecast"], result["actual"], width), width))
        self.console.print(verdict_panel(result, width))
        if made(result):
            self.console.print(Text(made(result)), soft_wrap=True)

    # --- progress ---

    def _on_progress(self, event: Event) -> None:
        if self._work is None or self._work["what"] != event["what"]:
            self._work_began = event.get("time", 0.0)
        self._work = event
        total, done = event.get("total"), event["done"]
        ended = total is not None and done >= total
        if not self.is_live and (ended or self._is_due(event["what"], event)):
            self._line(f"{event['what']}: {_progress_text(event, self._work_began)}")
        if ended:
            self._work = None
        self._draw(now=ended)

    def _on_step(self, event: Event) -> None:
        self._work = None
        if self.is_live:
            self._draw()
        elif self._is_due("step", event):
            s = self.standing
            parts = [f"step {s.step:,}", f"{count(s.tokens)} tokens", f"loss {_four(s.train_loss)}"]
            parts += [*self._speed(), *self._left()]
            self._line(" · ".join(parts))

    def _on_eval(self, event: Event) -> None:
        if event.get("whole"):
            self._line(f"best weights, of step {event['step']:,}, judged at the end: {_held_out(event)}")
            return
        if self.is_live:
            self._draw(now=True)
        elif self._is_due("eval", event):
            self._line(f"held-out after {count(event['tokens'])} tokens: {_held_out(event)}")

    def _on_settled(self, event: Event) -> None:
        if self.is_live:
            self._draw(now=True)
        elif self._is_due("settled", event) or self._state != event.get("state"):
            self._line(f"{event.get('state', '')}: {self._evidence()}")
        self._state = event.get("state")

    def _is_due(self, what: str, event: Event) -> bool:
        at = event.get("time", 0.0)
        pause = max(PLAIN_SECONDS, PLAIN_SHARE * self.standing.spent())
        if at - self._said_at.get(what, -pause) < pause:
            return False
        self._said_at[what] = at
        return True

    # --- the live display ---

    def _draw(self, now: bool = False) -> None:
        if not self.is_live:
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
        """What the live display shows at this moment; no line is wider than the terminal."""
        width = self._width()
        if self._work is not None:
            work = self._work
            share = work["done"] / work["total"] if work.get("total") else None
            return _bar(work["what"], share, _progress_text(work, self._work_began), width)
        s = self.standing
        if s.step == 0 and s.evaluated is None:
            return Text("")
        label = "settling" if s.state == "decaying" else "training"
        lines: list[RenderableType] = [_bar(label, s.fraction(), " · ".join(self._left()), width)]
        if s.evaluated is not None:
            lines.append(self._row(_held_out(s.evaluated), self._sparks()))
        parts = [f"train {_four(s.train_loss)}", f"{count(s.tokens)} tokens", *self._speed(), f"step {s.step:,}"]
        lines.append(self._row(" · ".join(parts)))
        if s.state and s.state != "decaying":
            lines.append(_bar("settled", s.nearness or 0.0, self._evidence(), width))
        return Group(*lines)

    def _width(self) -> int:
        """Room is left for the ^C that a terminal writes: were it to wrap, the display could not be taken away."""
        return max(1, self.console.width - 3)

    def _row(self, text: str, after: str = "") -> Text:
        row = Text(
            " " * (9 if self.console.width >= WHY_FITS else 2) + text + ("  " + after if after else ""),
            no_wrap=True,
            overflow="ellipsis",
        )
        row.truncate(self._width(), overflow="ellipsis")
        return row

    def _evidence(self) -> str:
        s = self.standing
        if s.high is None or not s.tolerance:
            return s.why
        return gain_text(s.high, s.tolerance, self.console.width)

    def _sparks(self) -> str:
        losses = self.standing.losses
        if len(losses) < 3:
            return ""
        wanted = min(len(losses), MOST_SPARKS)
        losses = [losses[round(i * (len(losses) - 1) / (wanted - 1))] for i in range(wanted)]
        low, high = min(losses), max(losses)
        return "".join(SPARKS[round((loss - low) / ((high - low) or 1.0) * (len(SPARKS) - 1))] for loss in losses)

    def _speed(self) -> list[str]:
        speed = self.standing.tokens_per_second
        return [f"{count(speed)} tokens/s"] if speed else []

    def _left(self) -> list[str]:
        left = self.standing.left()
        if left is None:
            return [f"{duration(self.standing.spent())} so far"] if self.standing.spent() > 1 else []
        return [f"{'at most' if left[1] == 'at most' else 'about'} {duration(left[0])} left"]


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


def _held_out(event: Event) -> str:
    """An evaluation in words."""
    text = f"loss {_four(number(event['loss']))}"
    stderr, bits = number(event.get("stderr")), number(event.get("bits_per_byte"))
    text += f" ± {stderr:.4f}" if stderr is not None else ""
    return text + (f" · {bits:.4f} bits per byte" if bits is not None else "")


def _four(loss: float | None) -> str:
    return "not a number" if loss is None else f"{loss:.4f}"


def _progress_text(event: Event, began: float) -> str:
    unit, done, total = event.get("unit", ""), event["done"], event.get("total")
    scaled = unit in ("bytes", "s", "J") or not total
    text = (amount(done, unit) if scaled else f"{done:,}") + (f" of {amount(total, unit)}" if total else "")
    spent = event.get("time", began) - began
    if spent > 0 and done > 0 and not (total and total <= FEW):  # the pace of a few big things says nothing
        speed = done / spent
        text += f" · {amount(speed, unit)}/s"
        if total and done < total:
            text += f" · {duration((total - done) / speed)} left"
    if event.get("detail"):
        text += f" · {event['detail']}"
    return text
