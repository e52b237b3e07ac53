"""`settle plan`: tables, sentences, a picture, and what it says about bad input."""

import json

import pytest

from settle.cli import main


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = main(["plan", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_cluster_run_has_layout_weeks_failures_and_money(capsys, tmp_path):
    picture = tmp_path / "run.png"
    code, out, err = run(
        capsys, "train", "--params", "70b", "--tokens", "2t", "--machine", "512x h100", "--by", "2999-01-01",
        "--served-tokens", "50t",
        "--picture", str(picture), "--json",
    )  # fmt: skip
    result = json.loads(out.strip().splitlines()[-1])
    assert result["life"]["saving"] > 0.1
    assert code == 0 and result["layout"] and result["chance_by_date"] == 1
    hours, failures = result["forecast"]["device_hours"], result["forecast"]["failures"]
    assert hours["low"] < hours["value"] < hours["high"] and failures["value"] > 1
    assert result["forecast"]["rent"]["value"] > hours["value"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_pay_off_compares_with_a_dated_price(capsys, tmp_path):
    picture = tmp_path / "pay.png"
    code, out, err = run(
        capsys, "pay-off", "mine", "--against", "gpt-5", "--machine", "rtx 4090", "--speed", "100",
        "--purchase", "2000", "--requests-per-day", "5000", "--picture", str(picture), "--json",
    )  # fmt: skip
    result = json.loads(out.strip().splitlines()[-1])
    assert code == 0 and result["chance"] > 0.9 and picture.read_bytes().startswith(b"\x89PNG")
    assert result["forecast"]["gpt_5_a_day"]["value"] > result["forecast"]["here_a_day"]["high"]


def test_tuning_takes_the_finest_method_that_fits(capsys, tmp_path):
    picture = tmp_path / "tune.png"

    def chosen(machine: str, *more: str) -> dict[str, object]:
        code, out, _ = run(capsys, "tune", "llama-3.1-8b", "--rows", "5000", "--machine", machine, *more, "--json")
        assert code == 0
        return json.loads(out.strip().splitlines()[-1])

    large, small = chosen("h100 sxm"), chosen("memory=14gb bandwidth=500gb/s tflops=80 watts=200")
    assert large["method"] == "lora" and small["method"] == "qlora" and small["fits"]["lora"] == "no"
    assert large["forecast"]["time"]["value"] < small["forecast"]["time"]["value"]
    assert chosen("8x h100 sxm", "--method", "full", "--picture", str(picture))["method"] == "full"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_pay_off_forecasts_the_speed_of_a_model_that_it_knows(capsys):
    code, out, _ = run(capsys, "pay-off", "llama-3.1-8b", "--against", "gpt-5", "--machine", "rtx 4090", "--json")
    result = json.loads(out.strip().splitlines()[-1])
    speed = result["forecast"]["speed"]
    assert code == 0 and 50 < speed["low"] < speed["value"] < speed["high"] and "q4_k_m" in speed["source"]


def test_tune_without_a_model_lists_those_that_can_be_tuned(capsys, tmp_path, monkeypatch):
    """By size, with memory and speed on the machine; in an empty home none of them is here."""
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path))
    code, out, _ = run(capsys, "tune", "--rows", "500", "--machine", "rtx 4090", "--json")
    models = json.loads(out.strip().splitlines()[-1])["models"]
    assert code == 0 and len(models) >= 2 and not any(model["is_here"] for model in models)
    sizes = [model["parameters"] for model in models]
    assert sizes == sorted(sizes) and models[0]["memory"] < models[-1]["memory"]
    for model in models:
        value, low, high = model["rate"]
        assert model["fits"] == "yes" and low < value < high and model["license"] and model["bytes"] > 1e7


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["train", "--tokens", "1b", "--machine", "h100"], "the size of the model is not said"),
        (["train", "--params", "1b", "--machine", "h100"], "how many tokens"),
        (["train", "--params", "1b", "--tokens", "1b", "--machine", "h1000"], "h1000"),
        (["train", "--params", "70b", "--tokens", "1b", "--machine", "rtx 4090"], "billion weights"),
        (["train", "--params", "8b", "--active", "9b", "--tokens", "1b", "--machine", "h100"], "active"),
        (["train", "--params", "1b", "--tokens", "1b", "--machine", "h100", "--by", "2001-01-01"], "not in the future"),
        (["train", "--params", "1b", "--tokens", "1b", "--machine", "4096x h100", "--batch-tokens", "4k"], "no work"),
        (["pay-off", "--machine", "h100", "--speed", "1"], "no API is named"),
        (["pay-off", "--machine", "h100", "--against", "gpt-5"], "neither a model nor a speed"),
        (["pay-off", "llama-3.1-70b", "--machine", "rtx 4060", "--against", "gpt-5"], "does not fit"),
        (["tune", "--machine", "h100"], "how many rows"),
        (["tune", "llama-3.1-8b", "--machine", "h100"], "how many rows"),
        (["tune", "llama-3.9-8b", "--rows", "10", "--machine", "h100"], "llama-3.9-8b"),
        (["tune", "llama-3.1-70b", "--rows", "10", "--machine", "rtx 4090"], "cannot be tuned"),
        (["tune", "llama-3.1-8b", "--rows", "10", "--machine", "rtx 4090", "--method", "full"], "--method lora fits"),
        (["pay-off", "--machine", "h100", "--speed", "1", "--against", "gtp-5"], "no price is known"),
        (["pay-off", "--machine", "h100", "--speed", "1", "--api-price", "cheap"], "is no price"),
        (["train", "--params", "1b", "--tokens", "1b", "--machine", "h100", "--picture", "a.pdf"], "no PNG"),
    ],
)
def test_what_is_missing_or_wrong_is_said(capsys, words, what):
    code, out, err = run(capsys, *words)
    assert code in (1, 2) and what in err and "Traceback" not in err


def test_without_what_it_says_what_can_be_planned(capsys):
    code, _, err = run(capsys)
    assert code == 2 and all(f"settle plan {what}" in err for what in ("tune", "train", "pay-off"))


def test_requests_at_once_are_served_in_less_time(capsys):
    def planned(texts: str) -> tuple[float, float]:
        words = ("pay-off", "llama-3.1-8b", "--against", "gpt-5", "--machine", "rtx 4090", "--texts", texts)
        code, out, err = run(capsys, *words, "--json")
        assert code == 0 and "out of date" in out + err  # prices of electricity are older than half a year
        result = json.loads(out.strip().splitlines()[-1])
        return result["forecast"]["speed"]["value"], result["busy_hours"]

    (slow, long), (fast, short) = planned("1"), planned("16")
    assert fast > 3 * slow and short < long / 2
    code, _, err = run(
        capsys, "pay-off", "llama-3.1-8b", "--against", "gpt-5", "--machine", "rtx 4090", "--texts", "2000"
    )
    assert code == 1 and "2000 texts at once" in err
