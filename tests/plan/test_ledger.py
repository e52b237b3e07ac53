from pathlib import Path

import pytest

from settle.base.files import write_json
from settle.base.run import Run
from settle.plan.forecast_figures import entries, scores


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


@pytest.mark.parametrize(
    ("source", "scored"),
    [("measured (RAPL)", True), ("estimated", False), ("asked", False), ("estimated + measured (NVML)", False)],
)
def test_energy_and_its_cost_are_scored_only_where_a_counter_was_read(tmp_path: Path, source: str, scored: bool):
    figure = {"value": 100.0, "low": 90.0, "high": 110.0}
    (tmp_path / "run").mkdir()
    forecast = {"time": figure, "energy": figure | {"source": source}, "cost": figure}
    write_json(tmp_path / "run" / "forecast.json", forecast)
    write_json(tmp_path / "run" / "result.json", {"actual": {"time": 99.0, "energy": 99.0, "cost": 99.0}})
    figures = {entry.figure for entry in entries([Run(tmp_path / "run")])}
    assert figures == ({"time", "energy", "cost"} if scored else {"time"})
