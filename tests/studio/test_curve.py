"""Curves are thinned so that spikes stay, and follow a run that goes back."""

import math

from hypothesis import given
from hypothesis import strategies as st

from settle.studio.feed import MOST_POINTS, Curve, Point


def curve_of(values):
    curve = Curve()
    for step, value in enumerate(values):
        curve.add(Point(step, step * 10, step / 2, value))
    return curve


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=5000))
def test_a_thinned_curve_keeps_its_extremes_its_order_and_its_last_point(values):
    shown = curve_of(values).shown()
    assert 0 < len(shown) <= MOST_POINTS
    steps = [point[0] for point in shown]
    assert steps == sorted(steps) and steps[-1] == len(values) - 1
    kept = {point[3] for point in shown}
    assert {float(f"{v:.6g}") for v in (min(values), max(values))} <= kept


def test_every_spike_of_a_long_run_is_kept():
    spikes = {7_000: 9.0, 50_001: 11.0, 99_990: 8.5}
    shown = curve_of([spikes.get(step, 2 + 0.1 * math.sin(step)) for step in range(100_000)]).shown()
    assert len(shown) <= MOST_POINTS and set(spikes.values()) <= {point[3] for point in shown}


def test_what_is_sent_piece_by_piece_is_the_whole_curve():
    curve, here, state = Curve(), [], (-1, 0)
    for step in range(6_000):
        curve.add(Point(step, step, step, math.sin(step)))
        if step % 7 == 0:
            start = state[1] if state[0] == curve.generation else 0
            here[start:] = curve.shown(start)
            state = curve.generation, curve.num_closed
    assert state[1] > 0 and curve.latest_step % 7 == 0 and here == curve.shown()


def test_points_after_a_step_that_comes_again_are_taken_back():
    curve = curve_of([3.0, 2.0, 9.0, 9.5])
    curve.add(Point(2, 20, 9.0, 1.5))
    assert [point[3] for point in curve.shown()] == [3.0, 2.0, 1.5]
    curve.add(Point(3, 30, 9.5, math.nan))
    assert curve.latest_step == 2 and curve.until(1).value == 2.0 and curve.until(-1) is None
