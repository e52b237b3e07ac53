"""plan.json and forecast.json: files of this version and of none are read, those of a newer one refused."""

import json
from pathlib import Path

import pytest

from settle.base.errors import RunError
from settle.base.files import write_json
from settle.base.run import Run
from settle.base.statistics import FORECAST_LEVEL, Interval
from settle.plan.forecast_figures import FORECAST_VERSION, Forecast, entries, read_figures, scores
from settle.train.state import LoopPlan
from settle.train.training_plan import PLAN_VERSION, TrainingPlan, Tuning

LOOP = LoopPlan(
    tokens_per_step=64, sequence_length=32, warmup_steps=3, max_steps=30, decay_fraction=0.4, checkpoint_steps=8
)  # fmt: skip
PLAN = TrainingPlan(
    architecture={"hidden_size": 64}, architecture_name="llama", objective="next_token", optimizer_name="adamw",
    optimizer={"lr": 0.01}, loop=LOOP, device="cpu", dtype="float32", held_out_tokens=512,
    origin={"dtype": "asked"}, why={"steps": "asked for"},
    tuning=Tuning("b", "base", "0" * 64, "lora", {"rank": 4, "targets": ["q_proj"]}, None, 4, 0),
)  # fmt: skip
FORECAST = Forecast(
    *(Interval(number, number / 2, number * 2, FORECAST_LEVEL) for number in range(1, 7)), "EUR", "measured"
)


def test_a_plan_comes_back_from_its_file() -> None:
    record = json.loads(json.dumps(PLAN.to_json()))
    assert record["version"] == PLAN_VERSION
    assert TrainingPlan.from_json(record | {"corpus": "abc", "asked": {}}) == PLAN
    del record["version"]  # as settle wrote it before it wrote versions
    assert TrainingPlan.from_json(record) == PLAN


@pytest.mark.parametrize("version", [PLAN_VERSION + 1, "two"])
def test_a_plan_of_a_newer_version_is_refused_by_its_number(version: object) -> None:
    with pytest.raises(RunError, match=f"plan.json has version {version}") as refused:
        TrainingPlan.from_json(PLAN.to_json() | {"version": version})
    assert "upgrade" in refused.value.fix


@pytest.mark.parametrize(("key", "value"), [("loop", 7), ("tuning", {"base": "b"}), ("held_out_tokens", "many")])
def test_what_is_no_plan_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        TrainingPlan.from_json(PLAN.to_json() | {key: value})


def test_a_forecast_comes_back_from_its_file() -> None:
    record = json.loads(json.dumps(FORECAST.to_json()))
    assert record["version"] == FORECAST_VERSION
    assert read_figures(record, "forecast.json") == FORECAST.figures
    assert record["cost"]["unit"] == "EUR" and record["energy"]["source"] == "measured"
    del record["version"]
    assert read_figures(record, "forecast.json") == FORECAST.figures


def test_a_forecast_of_a_newer_version_or_damaged_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", {"actual": {"time": 1.0}})
    write_json(tmp_path / "forecast.json", FORECAST.to_json() | {"version": FORECAST_VERSION + 1})
    with pytest.raises(RunError, match=f"version {FORECAST_VERSION + 1}"):
        read_figures(json.loads((tmp_path / "forecast.json").read_text()), "forecast.json")
    assert entries([Run(tmp_path)]) == []  # one damaged run does not end the list of all
    write_json(tmp_path / "forecast.json", {"time": {"value": 1.0, "low": "few"}})
    with pytest.raises(RunError, match="damaged"):
        read_figures(json.loads((tmp_path / "forecast.json").read_text()), "forecast.json")
    assert entries([Run(tmp_path)]) == []


# --- forecasts against actual figures ---


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
