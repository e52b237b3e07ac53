"""The picture is drawn from the events of whole, broken, resumed and odd runs; what it holds is read back from it."""

import io
import random

import numpy as np
import pytest
from matplotlib.image import imread

from settle.base.event_log import Events
from settle.base.run import Run, write_json
from settle.evaluate.report.curves import BLUE, GREEN, VERMILION, History, draw_curves, picture

FORECAST = {"loss": {"value": 2.6, "low": 2.4, "high": 2.9}}


def a_run(steps=300, decays=True, judged=True, seed=0):
    r = random.Random(seed)
    for step in range(steps + 1):
        loss = 2.5 + 5.8 * (1 + step / 6) ** -0.6
        if step:
            yield {"kind": "step", "step": step, "tokens": step * 512, "loss": loss + r.gauss(0, 0.05), "lr": 0.01}
        if step % 20 == 0:
            bits = loss * 0.58
            yield {
                "kind": "eval",
                "step": step,
                "tokens": step * 512,
                "loss": loss,
                "stderr": 0.01,
                "bits_per_byte": bits,
            }
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
    for event in a_run():
        events.emit(event.pop("kind"), **event)
    events.close()
    write_json(run.path / "forecast.json", FORECAST)
    path = draw_curves(run, {"verdict": "settled", "why": "little is left to gain", "actual": {"loss": 2.7}})
    assert path == run.out / "curves.png"
    image = imread(path)
    assert image.shape[0] >= 1000 and image.shape[1] >= 1400
    png = path.read_bytes()
    assert png.startswith(b"\x89PNG") and min(pixels(png, c) for c in (BLUE, GREEN, VERMILION)) > 300
    assert draw_curves(run).read_bytes() != png  # without a result the title says so


def test_nothing_to_see_yet(home):
    assert draw_curves(Run.create("train", "empty")) is None


def test_the_same_run_is_the_same_picture():
    draw = [picture(History.of(a_run()), {"verdict": "settled"}, FORECAST, "x") for _ in range(2)]
    assert draw[0] == draw[1]


@pytest.mark.parametrize("forecast", [{}, FORECAST, {"loss": {"value": 2.6}}, {"loss": None}])
@pytest.mark.parametrize("shape", [{"steps": 1}, {"steps": 20}, {"decays": False}, {"judged": False}])
def test_short_and_partial_runs(shape, forecast):
    assert picture(History.of(a_run(**shape)), {}, forecast, "partial").startswith(b"\x89PNG")


def test_a_run_of_many_steps_and_numbers_that_are_none():
    events = list(a_run(steps=5000))
    for event in events[::7]:
        if event["kind"] == "step":
            event["loss"] = "nan"
    events.append({"kind": "settled", "step": 5000, "gain": -0.01, "low": -0.02, "high": -0.001, "tolerance": 0.01})
    result = {"verdict": "out of budget", "why": "words " * 100, "actual": {"loss": {"value": 2.6}}}
    assert picture(History.of(events), result, FORECAST, "n" * 64).startswith(b"\x89PNG")


def test_steps_undone_by_a_rollback_or_a_crash_are_left_out():
    events = list(a_run(steps=100, decays=False))
    again = [{**e, "loss": 1.0} for e in a_run(steps=100, decays=False) if e["step"] > 60]
    rollback = {"kind": "rollback", "step": 100, "to_step": 60}
    history = History.of([*events, {"kind": "decay", "step": 90}, rollback, *again])
    assert [e["step"] for e in history.steps] == list(range(1, 101)) and history.decay_step is None
    assert {e["loss"] for e in history.steps if e["step"] > 60} == {1.0}
    assert [e["step"] for e in history.evals] == list(range(0, 101, 20)) and len(history.rollbacks) == 1
    assert pixels(picture(history, {}, {}, "x"), VERMILION) > 50


def test_the_best_weights_judged_at_the_end_undo_no_evaluation():
    events = list(a_run(steps=100))
    whole = {"kind": "eval", "whole": True, "step": 80, "tokens": 80 * 512, "loss": 3.4, "stderr": 0.01}
    history = History.of([*events, whole])
    assert history.evals[-1]["step"] == 100 and history.whole == whole
    assert picture(history, {"best": {"step": 80}}, FORECAST, "x") != picture(History.of(events), {}, FORECAST, "x")


def test_numbers_of_the_title_fit(home):
    history = History.of(a_run(steps=40))
    wide = picture(history, {"verdict": "out of budget", "why": "w" * 400}, {}, "n" * 64)
    image = imread(io.BytesIO(wide))[..., :3]
    assert (image[:, -8:] == 1.0).all() and (image[:, :8] == 1.0).all(), "nothing touches the edge of the picture"
