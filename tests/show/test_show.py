"""Faces are fed the events of a run and looked at as a person or a script would see them."""

import io
import json
import math
import subprocess
import sys

import pytest
from rich.console import Console
from scipy import stats

from settle.base.events import AnswerText, Listing
from settle.base.run.course import RunCourse
from settle.base.run.result import Result
from settle.base.words.figures import comparison, place_in_interval
from settle.base.words.sentences import outlook_text, progress_text
from settle.show import Face
from settle.show.tables import listing, tone_style, verdict_panel
from settle.show.talk import Talk
from tests.records import as_event, as_events

FORECAST = {
    "time": {"value": 640, "low": 500, "high": 900},
    "memory": {"value": 1.3e9, "low": 1.2e9, "high": 1.45e9},
    "loss": {"value": 2.71, "low": 2.6, "high": 2.8},
    "money": {"value": 0.02, "low": 0.01, "high": 0.03, "unit": "EUR"},
}
RESULT = {
    "verdict": "settled",
    "why": "10 % more tokens would gain 0.4 % at most; 0.5 % matters",
    "best": {"step": 299, "loss": 2.7123, "stderr": 0.012, "bits_per_byte": 1.62},
    "forecast": FORECAST,
    "actual": {"time": 612.0, "memory": 1.6e9, "loss": 2.7123},
    "gate": {"passed": True},
    "files": {"gguf": "/runs/notes/out/notes-f16.gguf", "safetensors": "/runs/notes/out/hf"},
}


def a_run(steps=60, seconds=2.0):
    """The events of a run, in the order and with the fields a run has."""
    at = 1000.0

    def event(kind, **fields):
        nonlocal at
        at += 0.0 if kind in ("eval", "settled") else seconds
        return {"time": at, "kind": kind, **fields}

    yield event("say", text="reading 214 files")
    for done in range(0, 21, 5):
        yield event("progress", what="tokenize", done=done * 10**6, total=20 * 10**6, unit="bytes")
    values = {"name": "notes", "train": {"tolerance": 0.005, "seconds": 1800}, "dtype": "bfloat16"}
    origin = {"name": "command line", "train.tolerance": "default", "train.seconds": "recipe", "dtype": "measured"}
    yield event("plan", values=values, origin=origin, why={"dtype": "faster at the planned shapes"}, full=False)
    yield event("forecast", forecast=FORECAST)
    yield event("proof", check="gradient", passed=True, detail="error 2e-4")
    for step in range(1, steps + 1):
        loss = 2.6 + 5 * step**-0.5
        yield event("step", step=step, tokens=step * 8192, loss=loss, lr=0.01, grad_norm=0.5, tokens_per_second=41000.0)
        if step % 10 == 0:
            yield event("eval", step=step, tokens=step * 8192, loss=loss, stderr=0.012, bits_per_byte=loss * 0.6)
            yield event("settled", step=step, tolerance=0.005, gain=0.01, low=0.0, high=0.02, state="learning")
    yield event("warn", text="the disk is full")
    batch = {"position": 61, "rows": [{"source": "notes/bad.md:1"}]}
    yield event("rollback", step=60, loss="nan", grad_norm="nan", to_step=50, batches=[batch])
    yield event("decay", step=60, until=80, why="settled")
    yield event("checkpoint", step=60)
    yield event("eval", whole=True, step=50, tokens=50 * 8192, loss=3.31, stderr=0.005, bits_per_byte=1.986)
    yield event("gate", check="token ids", passed=False, detail="first difference at string 7")
    yield event("a kind of a later version", anything=1)
    yield event("result", result=RESULT)


def shown(events, width=100, terminal=False, is_verbose=True, **console):
    stream = io.StringIO()
    made = Console(file=stream, force_terminal=terminal, width=width, legacy_windows=False, **console)
    talk = Talk(console=made, is_verbose=is_verbose)
    for event in as_events(events):
        talk.show(event)
    talk.close()
    return stream.getvalue()


def test_plain_lines_tell_the_whole_story():
    text = shown(a_run())
    for part in (
        "reading 214 files",
        "tokenize: 20 MB of 20 MB",
        "train.seconds   30 min 00 s   recipe",
        "measured   faster at the planned shapes",
        "1.2 – 1.45 GB",
        "✓ proof: gradient – error 2e-4",
        "held-out after 81.9 k tokens: loss 4.1811 ± 0.0120 · 2.5087 bits per byte",
        "learning: 10 % more tokens gain 2 % at most; 0.5 % matters",
        "! the disk is full",
        "step 60 went wrong (loss nan): back to step 50; batch 61 is left out, which begins with notes/bad.md:1",
        "the model has settled: the learning rate falls to zero until step 80",
        "best weights, of step 50, evaluated at the end: loss 3.3100 ± 0.0050",
        "✗ gate: token ids – first difference at string 7",
        "10 min 12 s   inside -4 %",
        "outside +23 %",
        "held-out loss 2.7123 ± 0.0120 · 1.6200 bits per byte · step 299",
        "notes-f16.gguf, hf in /runs/notes/out\n",
    ):
        assert part in text, f"{part!r} is not in\n{text}"
    assert "\x1b" not in text and "\r" not in text
    assert "about 10 min 40 s left" in text  # at the first step all of the forecast is left


@pytest.mark.parametrize("is_verbose", [False, True])
def test_plain_lines_are_few(is_verbose):
    text = shown(a_run(steps=2000, seconds=1.0), is_verbose=is_verbose)
    lines = [line for line in text.splitlines() if line.startswith("step ")]
    assert 10 < len(lines) < 80
    assert is_verbose or all("held-out loss" in line for line in lines[1:])


def test_a_run_of_minutes_is_a_screen_in_a_pipe():
    """Work that is soon done has no line, nor does the first judgement; the forecast is compared on one."""
    lines = shown(a_run(steps=2000, seconds=0.1), is_verbose=False).splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    assert 3 <= len(steps) <= 5 and len(lines) <= 16
    assert not any(line.startswith(("tokenize", "improving")) for line in lines)
    assert (
        "actual: time 10 min 12 s, inside -4 % · memory 1.6 GB, outside +23 % · loss 2.712 nats, inside +0 %" in lines
    )
    assert "settled: 10 % more tokens would gain 0.4 % at most; 0.5 % matters" in lines


@pytest.mark.parametrize(("seconds", "number"), [(1.0, 0), (50.0, 2)])
def test_work_has_a_line_in_a_pipe_if_it_takes_long(seconds, number):
    ticks = [
        {"time": seconds * done, "kind": "progress", "what": "rows", "done": done, "total": 5} for done in range(1, 6)
    ]
    lines = shown(ticks, is_verbose=False).splitlines()
    assert len(lines) == number and (not lines or lines[-1].startswith("rows: 5 of 5"))


def test_a_run_is_shown_in_a_screen_with_all_that_went_wrong():
    passed = [
        {"time": 1001.0, "kind": kind, "check": str(n), "passed": True} for kind in ("proof", "gate") for n in "ab"
    ]
    events = [*a_run(), *passed, {"time": 1e4, "kind": "say", "text": "twice the time", "is_detail": True}]
    short, whole = (shown(events, is_verbose=is_verbose) for is_verbose in (False, True))
    for part in ("! the disk is full", "step 60 went wrong", "✗ gate: token ids", "first difference at string 7",
                 "✓ proof: 2 checks of the recipe passed", "✓ gate: 2 checks of the exported file passed",
                 "plan: dtype bfloat16 · -v: 2 more", "loss 2.71 nats (2.6 – 2.8)",
                 "outside +23 %"):  # fmt: skip
        assert part in short, f"{part!r} is not in\n{short}"
    for part in ("✓ proof: a", "measured", "twice the time", "until step 80", "best weights, of step 50"):
        assert part in whole and part not in short


def test_a_sample_is_one_line_as_wide_as_the_terminal():
    words = "some words\n" * 40
    event = {"kind": "sample", "time": 1.0, "step": 5, "moment": "end", "prompt": "def f():", "text": words}
    assert len(shown([event], terminal=True).splitlines()) > 40
    for width in (40, 60, 100):
        short = shown([event], width, terminal=True, is_verbose=False)
        assert short.count("\n") == 1 and "def f():" in short and short.rstrip().endswith("…")


def test_few_changed_answers_are_shown_and_the_others_named():
    rows = [
        {"number": n, "gain": 0.5, "question": "why so?\n" * 40, "reference": f"answer {n}", "base": "a " * 90,
         "tuned": f"b{n} " * 200}
        for n in range(10)
    ]  # fmt: skip
    event = {"kind": "changed", "base": "smollm2", "tuned": "mine", "rows": rows, "run": "mine"}
    for width in (80, 140):
        short = shown([event], width, is_verbose=False)
        assert short.count("\n") <= 10 and "wanted: answer 0" in short and "wanted: answer 9" not in short
        assert "`settle runs show mine -v` shows 8 more" in short
    assert all(f"wanted: answer {n}" in shown([event]) for n in range(10)) and "shows" not in shown([event])
    assert "\n-v shows the whole texts" in shown([{**event, "rows": rows[:2], "run": ""}], is_verbose=False)


def test_checks_that_passed_are_counted_before_what_failed():
    checks = [{"kind": "proof", "time": 1.0, "check": name, "passed": True} for name in "abc"]
    assert shown(checks, is_verbose=False) == "✓ proof: 3 checks of the recipe passed; -v shows each\n"


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_nothing_is_wider_than_the_terminal(width):
    stream = io.StringIO()
    talk = Talk(console=Console(file=stream, force_terminal=True, width=width, legacy_windows=False))
    ruler = Console(file=io.StringIO(), width=1000)
    for event in as_events(a_run()):
        talk.show(event)
        console = Console(file=io.StringIO(), width=width)
        with console.capture() as captured:
            console.print(talk.live.picture())
        lines = captured.get().splitlines()
        assert len(lines) <= 4, "the display never wraps"
        assert all(ruler.measure(line.rstrip()).maximum <= width - 3 for line in lines)
    talk.close()


def test_the_live_display_leaves_no_trace():
    text = shown(a_run(), terminal=True)
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") >= 1, "the cursor is shown again"
    assert "settled" in text and "left" in text


def test_no_color_is_respected(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown(a_run(), terminal=True)
    assert "\x1b[32m" not in text and "\x1b[33m" not in text and "38;5" not in text


def test_a_terminal_that_knows_only_ascii():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    talk = Talk(console=Console(file=stream, width=100), is_verbose=True)
    for event in as_events(a_run()):
        talk.show(event)
    talk.close()
    stream.flush()
    assert b"ok proof: gradient - error 2e-4" in stream.buffer.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_numbers_that_are_none(terminal):
    nan = float("nan")
    why = "3 of 30 evaluations needed for a verdict"
    events = [
        {"kind": "step", "time": 1.0, "step": 1, "tokens": 10, "loss": nan, "lr": 0.1, "tokens_per_second": nan},
        {"kind": "eval", "time": 1.0, "step": 1, "tokens": 10, "loss": "nan", "stderr": "nan", "bits_per_byte": nan},
        {
            "kind": "settled",
            "time": 1.0,
            "step": 1,
            "tolerance": 0.01,
            "gain": nan,
            "low": nan,
            "high": nan,
            "why": why,
            "state": "improving",
        },
    ]
    text = shown(events, terminal=terminal)
    assert "not a number" in text and (why in text or terminal) and "nan" not in text


def test_a_change_of_mind_is_always_said():
    told = {"kind": "settled", "time": 1.0, "step": 1, "gain": 0.1, "low": 0.0, "high": 0.1, "tolerance": 0.01}
    events = [{**told, "state": state} for state in ("improving", "improving", "settled", "settled")]
    assert [line.partition(":")[0] for line in shown(events).splitlines()] == ["improving", "settled"]


def test_defaults_can_be_left_out():
    event = {"kind": "plan", "values": {"a": 1, "b": 2}, "origin": {"a": "default", "b": "recipe"}, "full": False}
    text = shown([event])
    assert "and 1 defaults; --dry shows them" in text and " a " not in text


def test_json_is_the_last_line_and_all_of_stdout():
    code = (
        "import sys; from settle.base.events import AnswerText, Listing; from settle.show import Face\n"
        "from tests.records import as_events; from tests.show.test_show import a_run\n"
        "face = Face(json=True)\n"
        "for event in as_events(a_run()): face(event)\n"
        "face(AnswerText(text='words')); face(Listing(columns=['a'], rows=[[1]]))\n"
        "face.close()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == RESULT and "reading 214 files" in done.stderr


def test_stdout_carries_the_answer_only(capsys):
    face = Face()
    for event in as_events(a_run()):
        face(event)
    face(AnswerText(text="once upon "))
    face(AnswerText(text="a time"))
    face.close()
    out, err = capsys.readouterr()
    assert out == "once upon a time" and "settled" in err


def test_a_table_in_a_pipe_is_aligned_and_never_cut(capsys):
    face = Face()
    path = "/a/very/long/path" * 20
    face(Listing(columns=["name", "loss", "path"], rows=[["notes", 2.5, path], ["x", None, "y"]]))
    face.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["name   loss  path", f"notes  2.5   {path}", "x      –     y"]


def test_a_narrow_terminal_shows_what_a_row_is_and_says_what_is_left_out():
    columns = ("name", "status", "verdict", "bits per byte", "tokens", "time", "started")
    row = ["a-long-name-of-a-run", "finished", "out of budget", 2.25, "246 k", "1 min 16 s", "2026-11-25 01:27"]
    for width, left_out in ((60, "bits per byte, tokens, time, started"), (120, "")):
        console = Console(width=width, file=io.StringIO())
        console.print(listing(Listing(columns=columns, rows=[row]), width))
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines)) <= width and any("a-long-name-of-a-run" in line for line in lines)
        text = " ".join(" ".join(lines).split())
        assert (f"a wider terminal shows {left_out} too" in text) == bool(left_out)


def test_errors_name_the_fix(capsys):
    Face().error("there is no run named 'x'", "known: notes")
    assert capsys.readouterr().err == "settle: there is no run named 'x'\n  → known: notes\n"


def left_after(*records, **fields):
    """The time left of a course that has had these events."""
    course = RunCourse.of(as_events(records))
    for name, value in fields.items():
        setattr(course.left, name, value)
    return course


def a_step(step, time, tokens=None):
    return {"kind": "step", "time": time, "step": step, "tokens": tokens or step, "loss": 1.0}


def still_left(done, expected, high):
    """The median of what is left of a log-normal amount that is above `done`; its 80 % interval ends at `high`."""
    amount = stats.lognorm(math.log(high / expected) / stats.norm.ppf(0.9), scale=expected)
    return amount.isf(amount.sf(done) / 2) - done


def test_one_time_left_is_shown() -> None:
    """90 of 100 items are left, at one in ten seconds: a quarter of an hour; of a run, what is left of it."""
    event = as_event({"time": 100.0, "kind": "progress", "what": "rows", "done": 10, "total": 100})
    assert progress_text(event, 0.0).endswith("15 min 00 s left")
    assert progress_text(event, 0.0, "about 2 min 00 s left").endswith("/s · about 2 min 00 s left in all")
    records = [
        ("phase", {"phase": "compare", "elapsed": 9.0, "left": 120.0}),
        ("progress", {"what": "rows", "done": 10, "total": 100}),
    ]
    text = shown([{"time": 100.0, "kind": kind, **fields} for kind, fields in records])
    assert text.count("left") == 1 and text.endswith(" left in all\n")


def test_time_left_is_known_by_the_forecast_then_by_the_steps():
    course = RunCourse()
    assert course.left.seconds() is None and course.left.fraction() is None and course.nearness is None
    course.left.expected, course.left.at_most = 100.0, 150.0
    left = []
    for step in range(1, 30):
        course.add(as_event(a_step(step, step * 5.0)))
        left.append(course.left.seconds())
    assert left[0] == (pytest.approx(100.0), "forecast")
    assert left[18] == (pytest.approx(still_left(90.0, 100.0, 150.0)), "forecast")
    assert left[-1] == (pytest.approx(still_left(140.0, 100.0, 150.0)), "forecast")
    course.add(as_event({"kind": "decay", "time": 145.0, "step": 29, "until": 39, "why": "settled"}))
    assert course.left.seconds() == (50.0, "steps") and course.left.fraction() == pytest.approx(140 / 190)
    steps = [a_step(step, step * 5.0) for step in (1, 2, 3)]
    bounded = left_after({"kind": "plan", "values": {"steps": 10}}, *steps)
    assert bounded.left.seconds() == (35.0, "at most")
    bounded.left.expected = 1000.0  # by a forecast that was made while the machine was slower
    assert bounded.left.seconds() == (35.0, "at most")
    resumed = left_after({"kind": "resumed", "step": 7, "seconds": 30.0}, a_step(8, 5.0), expected=100.0, at_most=150.0)
    assert resumed.left.seconds() == (pytest.approx(still_left(30.0, 100.0, 150.0)), "forecast")


def test_time_left_by_the_forecast_follows_the_present_pace():
    """A machine that got other work is twice as slow as was forecast; a run that a clock ends is not longer for it."""
    forecast = {"time": {"value": 100.0, "high": 150.0}, "tokens": {"value": 200.0, "high": 300.0}}
    phase = {"kind": "phase", "phase": "loop", "time": 0.0, "elapsed": 5.0, "left": 95.0}
    by_clock = forecast | {"budgeted": ["time"]}
    cases = (
        ({"steps": None, "time": None}, forecast, 190 * 1.0, "forecast"),
        ({"time": "100s"}, forecast, 85.0, "clock"),  # at this pace it will not settle in time
        ({"time": "100s"}, by_clock, 85.0, "clock"),
        ({"time": "900s"}, forecast, 190 * 1.0, "forecast"),
    )
    for values, expected, left, how in cases:
        here = phase | ({"left": 895.0} if values.get("time") == "900s" else {})
        course = left_after({"kind": "plan", "values": values}, {"kind": "forecast", "forecast": expected}, here)
        for step in range(1, 6):
            course.add(as_event(a_step(step, step * 2.0, 2 * step)))
        assert course.left.seconds() == (pytest.approx(left, abs=1.1), how)
    resumed = {"kind": "resumed", "step": 110, "seconds": 60.0}
    steps = [a_step(step, step * 2.0, 2 * step) for step in (111, 112)]
    course = left_after({"kind": "forecast", "forecast": forecast}, resumed, *steps)
    left = still_left(224, 200, 300) * 2 / 2  # two seconds and two tokens a step
    assert course.left.seconds() == (pytest.approx(left), "forecast")


def test_settled_is_as_near_as_its_gain():
    judgement = {"kind": "settled", "step": 1, "state": "improving", "gain": 0.0, "tolerance": 0.005}
    assert left_after(judgement | {"high": -0.1}).nearness == 1.0
    assert left_after(judgement | {"high": 0.05}).nearness == pytest.approx(0.1)


def test_the_expected_loss_gives_way_to_what_the_decay_shows():
    decay = {"kind": "decay", "step": 10, "until": 20, "why": "budget"}
    forecast = {"kind": "loss_forecast", "step": 10, "tokens": 10, "end_tokens": 20, "loss": 3.9}
    forecast |= {"low": 3.8, "high": 4.0}
    evaluation = {"kind": "eval", "step": 12, "tokens": 12, "loss": 3.7, "stderr": 0.1, "bits_per_byte": 1.5}
    begun = RunCourse.of(as_events([decay, forecast, evaluation | {"step": 10, "tokens": 10}]))
    assert outlook_text(begun).startswith("expected at the end: 3.9")
    assert outlook_text(RunCourse.of(as_events([decay, forecast, evaluation]))) == ""


@pytest.mark.parametrize(
    ("actual", "low", "high", "word"),
    [
        (2.0, 1.0, 3.0, "inside"),
        (3.0, 1.0, 3.0, "inside"),
        (3.5, 1.0, 3.0, "outside"),
        (0.9, 1.0, 3.0, "outside"),
        (3.48, 0.5, 4.0, "inside, too wide to say much"),
        (0.2, 0.0, 1.0, "inside, too wide to say much"),
    ],
)
def test_a_figure_inside_an_interval_that_holds_anything_is_no_success(
    actual: float, low: float, high: float, word: str
) -> None:
    assert place_in_interval(actual, low, high) == word
    table = comparison({"loss": {"value": 1.0, "low": low, "high": high}}, {"loss": actual})
    assert table.rows[0][-1] == f"{word} {100 * (actual - 1):+.0f} %" and "✓" not in str(table.rows)


@pytest.mark.parametrize(("share", "is_said"), [(None, False), (0.1, False), (0.63, True)])
def test_a_comparison_says_when_the_machine_was_busy(share: float | None, is_said: bool) -> None:
    actual = {"time": 612.0, "others_share": share}
    out = shown([{"time": 1.0, "kind": "result", "result": {**RESULT, "actual": actual}}])
    assert ("other programs took 63% of the processor" in out) == is_said
    assert "others" not in out or is_said


@pytest.mark.parametrize(("budget", "words"), [("time", "time used"), ("tokens", "tokens used"), (None, "budget used")])
def test_a_run_that_took_its_budget_is_no_warning(budget: str | None, words: str) -> None:
    """On a screen; what scripts read keeps its name."""
    result = Result(verdict="out of budget", budget=budget, why="the end")
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=80)
    console.print(verdict_panel(result, 80))
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert f" {words} " in drawn and "out of budget" not in drawn and "\x1b[33m" not in drawn
    assert result.to_json()["verdict"] == "out of budget" and tone_style(words) == "dim"
    assert Result(verdict="settled", budget=budget).shown_verdict == "settled"


def test_the_verdict_says_what_else_the_comparison_found():
    """A decision model that is right on 97 % and says 43 % refuses every answer: its ECE alone tells nobody why."""
    note = "under-confident: says 43% on average, is right on 97%"
    result = Result(verdict="settled", comparison={"verdict": "better", "headline": "better: 97%", "notes": [note]})
    console = Console(file=io.StringIO(), width=100)
    console.print(verdict_panel(result, 100))
    assert f"! {note}" in console.file.getvalue()
    assert Result(verdict="settled", comparison={"verdict": "better"}).notes == []
