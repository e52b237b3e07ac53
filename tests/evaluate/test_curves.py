"""The picture is drawn from the events of whole, broken, resumed and odd runs; what it holds is read back from it."""

import io
import random

import numpy as np
import pytest
from matplotlib.image import imread

from settle.base.event_log import Events
from settle.base.files import write_json
from settle.base.run import Run
from settle.base.run.course import RunCourse
from settle.base.run.result import Result
from settle.evaluate.report.curves import draw_curves, picture
from settle.evaluate.report.figure_style import BLUE, GREEN, VERMILION
from tests.records import as_event, as_events

FORECAST = {"loss": {"value": 2.6, "low": 2.4, "high": 2.9}}


def a_run(steps=300, decays=True, judged=True, seed=0):
    r = random.Random(seed)
    for step in range(steps + 1):
        loss = 2.5 + 5.8 * (1 + step / 6) ** -0.6
        if step:
            yield {"kind": "step", "step": step, "tokens": step * 512, "loss": loss + r.gauss(0, 0.05), "lr": 0.01}
        if step % 20 == 0:
            figures = {"loss": loss, "stderr": 0.01, "bits_per_byte": loss * 0.58}
            yield {"kind": "eval", "step": step, "tokens": step * 512, **figures}
            if judged and step > 40:
                gain = 0.3 * step**-0.7
                state = "settled" if gain * 1.3 < 0.01 else "improving"
                numbers = {"gain": gain, "low": 0.0, "high": gain * 1.3, "tolerance": 0.01}
                yield {"kind": "settled", "step": step, "state": state, **numbers}
        if decays and step == steps * 4 // 5:
            yield {"kind": "decay", "step": step, "until": steps, "why": "settled"}


def pixels(png, colour):
    """How many pixels are close to a colour."""
    image = imread(io.BytesIO(png))[..., :3]
    wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return int((np.abs(image - wanted).max(axis=-1) < 0.02).sum())


def test_a_run_is_drawn_into_its_folder(home):
    run = Run.create("train", "notes")
    events = Events(run.events)
    for event in as_events(a_run()):
        events.emit(event)
    events.close()
    write_json(run.path / "forecast.json", FORECAST)
    path = draw_curves(run, Result(verdict="settled", why="little is left to gain", actual={"loss": 2.7}))
    assert path == run.out / "curves.png"
    image = imread(path)
    assert image.shape[0] >= 1000 and image.shape[1] >= 1400
    png = path.read_bytes()
    assert png.startswith(b"\x89PNG") and min(pixels(png, c) for c in (BLUE, GREEN, VERMILION)) > 300
    assert draw_curves(run).read_bytes() != png  # without a result the title says so


def test_nothing_to_see_yet(home):
    assert draw_curves(Run.create("train", "empty")) is None


def test_the_same_run_is_the_same_picture():
    draw = [picture(RunCourse.of(as_events(a_run())), Result(verdict="settled"), FORECAST, "x") for _ in range(2)]
    assert draw[0] == draw[1]


@pytest.mark.parametrize("forecast", [{}, FORECAST, {"loss": {"value": 2.6}}, {"loss": None}])
@pytest.mark.parametrize("shape", [{"steps": 1}, {"steps": 20}, {"decays": False}, {"judged": False}])
def test_short_and_partial_runs(shape, forecast):
    assert picture(RunCourse.of(as_events(a_run(**shape))), None, forecast, "partial").startswith(b"\x89PNG")


def test_a_run_of_many_steps_and_numbers_that_are_none():
    events = list(a_run(steps=5000))
    for event in events[::7]:
        if event["kind"] == "step":
            event["loss"] = "nan"
    numbers = {"gain": -0.01, "low": -0.02, "high": -0.001, "tolerance": 0.01}
    events.append({"kind": "settled", "step": 5000, "state": "improving", **numbers})
    result = Result(verdict="out of budget", why="words " * 100, actual={"loss": {"value": 2.6}})
    assert picture(RunCourse.of(as_events(events)), result, FORECAST, "n" * 64).startswith(b"\x89PNG")


def test_steps_undone_by_a_rollback_or_a_crash_are_left_out():
    events = list(a_run(steps=100, decays=False))
    again = [{**e, "loss": 1.0} for e in a_run(steps=100, decays=False) if e["step"] > 60]
    rollback = {"kind": "rollback", "step": 100, "to_step": 60, "loss": 9.0}
    course = RunCourse.of(
        as_events([*events, {"kind": "decay", "step": 90, "until": 100, "why": "settled"}, rollback, *again])
    )
    assert [e.step for e in course.steps] == list(range(1, 101)) and course.decay is None
    assert {e.loss for e in course.steps if e.step > 60} == {1.0}
    assert [e.step for e in course.evals] == list(range(0, 101, 20)) and len(course.rollbacks) == 1
    assert pixels(picture(course, None, {}, "x"), VERMILION) > 50


def test_the_best_weights_judged_at_the_end_undo_no_evaluation():
    events = list(a_run(steps=100))
    whole = {"kind": "eval", "whole": True, "step": 80, "tokens": 80 * 512, "loss": 3.4, "stderr": 0.01}
    course = RunCourse.of(as_events([*events, whole]))
    assert course.evals[-1].step == 100 and course.whole == as_event(whole)
    without, result = RunCourse.of(as_events(events)), Result(verdict="settled", best={"step": 80})
    assert picture(course, result, FORECAST, "x") != picture(without, result, FORECAST, "x")
    assert picture(course, result, FORECAST, "x") != picture(course, result, FORECAST, "x", "nats per decision")


def test_numbers_of_the_title_fit(home):
    course = RunCourse.of(as_events(a_run(steps=40)))
    wide = picture(course, Result(verdict="out of budget", why="w" * 400), {}, "n" * 64)
    image = imread(io.BytesIO(wide))[..., :3]
    assert (image[:, -8:] == 1.0).all() and (image[:, :8] == 1.0).all(), "nothing touches the edge of the picture"
