from pathlib import Path

import pytest

from settle.base.run import Run, write_json
from settle.plan.ledger import entries, scores


def finished(path: Path, expected: float, came: float) -> Run:
    path.mkdir()
    forecast = {"time": {"value": expected, "low": expected * 0.9, "high": expected * 1.1}, "loss": {"value": 2.0}}
    write_json(path / "forecast.json", forecast | {"loss": {"value": 2.0, "low": 1.9, "high": 2.1}})
    write_json(path / "result.json", {"actual": {"time": came, "loss": None}})
    return Run(path)


def test_scores_of_forecasts(tmp_path: Path):
    runs = [finished(tmp_path / str(i), 100.0, came) for i, came in enumerate([95.0, 104.0, 130.0])]
    ledger = entries(runs)
    assert [e.error for e in ledger] == pytest.approx([-0.05, 0.04, 0.3])
    (score,) = scores(ledger)
    assert score.figure == "time" and score.runs == 3
    assert score.median_error == pytest.approx(0.05)
    assert score.bias == pytest.approx(0.04)
    assert score.coverage == pytest.approx(2 / 3)


def test_runs_without_a_result_or_a_forecast_are_passed_over(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write_json(tmp_path / "b" / "result.json", {"forecast": None, "actual": {"time": 3.0}})
    assert entries([Run(tmp_path / "a"), Run(tmp_path / "b")]) == []
    assert scores([]) == []
