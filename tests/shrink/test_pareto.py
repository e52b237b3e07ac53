"""The frontier, as rows and as a picture."""

import dataclasses

import pytest

from settle.shrink.pareto import COLUMNS, LEAST, Point, best_points, draw_pareto, pareto_rows

F16 = Point("F16", 270_000_000, 0.0, speed=20.0, peak_bytes=300_000_000)
Q8 = Point("Q8_0", 145_000_000, 0.001, 0.0009, 0.0011, 35.0, 0.98, 0.0004)
Q4 = Point("Q4_K_M", 105_000_000, 0.03, 0.028, 0.032, 45.0, 0.9, 0.01)
AUTO = Point("auto", 100_000_000, 0.02, 0.018, 0.022, 46.0, 0.92, 0.008, chosen=True)
Q2 = Point("Q2_K", 80_000_000, 0.4, predicted=True)
POINTS = [Q4, F16, Q2, AUTO, Q8]


def test_the_frontier_is_what_no_other_beats():
    assert [p.name for p in best_points(POINTS)] == ["Q2_K", "auto", "Q8_0", "F16"]
    slow = dataclasses.replace(AUTO, speed=10.0)
    assert "Q4_K_M" in [p.name for p in best_points([Q4, slow])]
    assert best_points([Q4, Q4]) == [Q4, Q4]


def test_rows():
    rows = pareto_rows(POINTS)
    assert [row[0] for row in rows] == ["● F16", "● Q8_0", "  Q4_K_M", "→ auto", "● Q2_K"]
    assert all(len(row) == len(COLUMNS) for row in rows)
    assert rows[1][1:6] == ["145.0", "0.001 (0.0009–0.0011)", "98.0%", "+0.04%", "35.0"]
    assert rows[4][2] == "≈ 0.4" and rows[4][5] == "–" and rows[0][2] == "0"


@pytest.mark.parametrize("points", [POINTS, [Q8], [F16], [dataclasses.replace(Q4, kl=LEAST / 10), Q8]])
def test_picture(points, tmp_path):
    path = draw_pareto(points, tmp_path / "pareto.png", "smollm2: size, speed and loss")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
