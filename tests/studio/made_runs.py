"""Run folders as settle leaves them, written through its own events: finished, failed, at work, torn and old ones."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from settle.base import events as kinds
from settle.base.event_log import Events
from settle.base.events import Event

BEGAN = 1_795_800_000.0  # epoch seconds
FORECAST = {
    "version": 1,
    "tokens": {"value": 200_000, "low": 150_000, "high": 300_000},
    "time": {"value": 100.0, "low": 80.0, "high": 130.0},
    "peak_memory": {"value": 4e8, "low": 3.8e8, "high": 4.4e8},
    "energy": {"value": 700.0, "low": 500.0, "high": 900.0, "source": "estimated"},
    "loss": {"value": 2.4, "low": 2.1, "high": 2.8},
}


def training(num_steps: int, seconds: float = 0.5, tokens: int = 1000, spike: int | None = None) -> Iterator[Event]:
    """The events of a run that learns: a step each `seconds`, an evaluation every tenth, samples."""
    at = BEGAN
    yield kinds.PhaseStarted(time=at, phase="loop", elapsed=0.0)
    for step in range(num_steps + 1):
        at = BEGAN + step * seconds
        loss = 2.2 + 3.3 * math.exp(-step / max(10, num_steps / 5)) + 0.02 * math.sin(step)
        if step:
            yield kinds.Step(time=at, step=step, tokens=step * tokens, loss=9.9 if step == spike else loss, lr=1e-3,
                             grad_norm=1.0, tokens_per_second=tokens / seconds)  # fmt: skip
        if step % 4 == 1:
            yield kinds.Usage(time=at, step=step, tokens=step * tokens, memory=300_000_000 + step * 1000, watts=7.5)
        if step % 10 == 0:
            yield kinds.Eval(time=at, step=step, tokens=step * tokens, loss=loss, stderr=0.01, bits_per_byte=loss / 2.5)
            high = max(0.004, 0.1 - step / (12 * num_steps))
            yield kinds.SettledEvidence(time=at, step=step, tolerance=0.005, state="improving", why="still improving",
                                        gain=0.02, low=0.01, high=high)  # fmt: skip
        if step in (0, num_steps // 2, num_steps):
            moment = {0: "start", num_steps: "end"}.get(step, "middle")
            text = {"start": "qj xv", "middle": " the sea of", "end": " the sea was calm."}[moment]
            yield kinds.Sample(time=at, step=step, moment=moment, prompt="In the morning", text=text)


def write_run(
    home: Path, name: str, happened: Iterator[Event] | list[Event], result: dict[str, Any] | None = None,
    command: str = "train", **files: object,
) -> Path:  # fmt: skip
    """A run folder. files: of its JSON files, by their stem."""
    folder = home / "runs" / f"2026-11-27-{command}-{name}-abcdef"
    for below in (folder, folder / "out", folder / "checkpoints"):
        below.mkdir(parents=True)
    log = Events(folder / "events.jsonl")
    for event in happened:
        log.emit(event)
    log.close()
    if (path := folder / "events.jsonl").exists():  # the line that begins the file is of now
        opened, _, rest = path.read_text(encoding="utf-8").partition("\n")
        path.write_text(json.dumps(json.loads(opened) | {"time": BEGAN}) + "\n" + rest, encoding="utf-8")
    for stem, value in {"forecast": FORECAST, **files}.items():
        (folder / f"{stem}.json").write_text(json.dumps(value))
    if result is not None:
        (folder / "result.json").write_text(json.dumps({"version": 1, "name": name, **result}))
    return folder


FINISHED = {
    "verdict": "settled",
    "why": "10 % more tokens gain 0.4 % at most",
    "best": {"step": 200, "tokens": 200_000, "loss": 2.26, "stderr": 0.01, "bits_per_byte": 0.9},
    "forecast": FORECAST,
    "actual": {"time": 104.0, "peak_memory": 4.1e8, "energy": 720.0, "tokens": 200_000, "loss": 2.26},
    "gate": {"passed": True, "kl": 1e-7},
    "audit": {"sentence": "Nothing left this machine."},
}
DIVERGED = {"verdict": "diverged", "why": "the loss rose without end after step 30", "actual": {"time": 12.0}}


def fill(home: Path) -> None:
    """The runs that every flow may look at; a test that changes a run makes its own."""
    plan = {"version": 1, "asked": {"inputs": ["notes"], "lr": 1e-3}, "loop": {"seed": 0, "tokens_per_step": 1000},
            "optimizer": {"lr": 1e-3}, "num_parameters": 1_000_000}  # fmt: skip
    other = {**plan, "optimizer": {"lr": 3e-3}}
    card = "# calm\n\nA language model trained from nothing. <script>alert(1)</script>\n"
    folder = write_run(home, "calm", training(200, spike=120), FINISHED, plan=plan)
    (folder / "out" / "card.md").write_text(card)
    write_run(home, "rough", training(120), {**FINISHED, "verdict": "out of budget", "why": "stopped"}, plan=other)
    write_run(home, "burst", training(30), DIVERGED, plan=plan)
    write_run(home, "paused", training(60), plan=plan)
    end = kinds.RunFailed(time=BEGAN + 15, what="the disk is full", fix="make room, then resume it")
    write_run(home, "stuck", [*training(30), end], plan=plan)
    torn = write_run(home, "torn", training(20), plan=plan)
    with (torn / "events.jsonl").open("a") as f:
        f.write('{"time": 1795800010.0, "kind": "st')
    (home / "runs" / "2025-01-01-train-half-deleted-abcdef").mkdir()  # what an interrupted `rm -r` leaves
    write_elder_run(home)
    newer = write_run(home, "from-the-future", training(3))
    (newer / "result.json").write_text(json.dumps({"version": 99, "verdict": "settled"}))


def write_elder_run(home: Path) -> None:
    """As the first versions left one: no line that begins the file, no versions, fewer figures."""
    folder = home / "runs" / "2025-03-01-train-elder-abcdef"
    (folder / "out").mkdir(parents=True)
    lines: list[dict[str, object]] = []
    for step in range(21):
        for kind in ("step", "eval") if step % 10 == 0 else ("step",):
            figures = {"step": step, "tokens": step * 1000, "loss": 4.0 - step / 10}
            lines.append({"time": BEGAN + step, "kind": kind, **figures})
    lines.append({"time": BEGAN + 21, "kind": "of that time", "what": 1})
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "result.json").write_text('{"verdict": "settled", "why": "it was long ago"}')
