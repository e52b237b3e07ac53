"""What `settle plan` puts into its tables, sentences and results, beside the forecasts that they are made of."""

import dataclasses
import datetime

import pytest

from settle.base.amounts import count
from settle.base.errors import ResourceError, UsageError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady, Say
from settle.base.statistics import Interval
from settle.machine.described_machine import GIB, machine_or_this
from settle.plan.cluster.throughput import shape_of_size
from settle.plan.cluster.whole_run import forecast_run
from settle.plan.cost import ASKED, Life, PayOff, cost, life
from settle.plan.fit.model_shapes import named_shape
from settle.plan.memory_model import room
from settle.plan.report import PlanSettings, figures, pay_off, train, tune


def told(plan, *model, **asked):
    """The tables, sentences and the result of a plan."""
    seen = []
    plan(*model, PlanSettings.model_validate(asked), Events(listeners=[seen.append]))
    (result,) = (event.result for event in seen if isinstance(event, ResultReady))
    return [e for e in seen if isinstance(e, Listing)], [e.text for e in seen if isinstance(e, Say)], result


def test_cells_have_ends_where_there_are_any():
    rows = {"a day's cost": (Interval(2.0, 1.0, 3.0), "USD", "asked"), "exact": (Interval(5.0, 5.0, 5.0), "h", "x")}
    table = figures.forecast_table("title", rows, "note")
    assert table.rows[0][2:4] == [{"value": 1.0, "unit": "USD"}, {"value": 3.0, "unit": "USD"}]
    assert table.rows[1] == ["exact", {"value": 5.0, "unit": "h"}, "", "", "x"]
    assert figures.values(rows)["a_day_s_cost"] == {
        "value": 2.0,
        "low": 1.0,
        "high": 3.0,
        "unit": "USD",
        "source": "asked",
    }


CLUSTER = {"params": "8b", "tokens": "1t", "machine": "64x h100 sxm", "sequence": 2048}


def test_a_training_plan_says_what_was_forecast():
    by = datetime.date.today() + datetime.timedelta(days=400)
    (layouts, table), sentences, result = told(train.plan_train, **CLUSTER, by=by, served_tokens="2t")
    machine = machine_or_this(CLUSTER["machine"])
    shape = shape_of_size(count("8b"))
    run = forecast_run(shape, count("1t"), machine, sequence=2048)
    money = cost(run.device_hours, machine)
    known = result["forecast"]
    assert known["time"]["value"] == pytest.approx(86400 * run.days.value)
    assert known["device_hours"]["high"] == run.device_hours.high
    assert known["energy"]["value"] == pytest.approx(3.6e6 * money.energy.value)
    assert known["rent"]["low"] == money.rent.low and known["bill_with_storage_and_network"]["value"] > money.rent.value
    assert known["share_of_the_time_that_is_work"]["value"] == pytest.approx(100 * run.failures.share.value)
    assert 50 < known["share_of_the_time_that_is_work"]["value"] <= 100
    assert known["memory_of_a_device"]["value"] == run.layouts[0].memory.total < machine.memory
    assert f"{machine.memory / GIB:.0f} GB" in known["memory_of_a_device"]["source"]
    assert known["speed_of_a_device_steady"]["value"] == run.layouts[0].rate.tokens.value
    assert result["chance_by_date"] == run.chance_within(400) and result["layout"] == run.layouts[0].layout.label
    assert result["life"] == dataclasses.asdict(life(shape.active_parameters, run.tokens, count("2t")))
    fail = run.failures
    steps = f"{run.tokens / run.batch_tokens:,.0f} steps"
    assert sentences[0] == f"a batch of {run.batch_tokens / 1e6:.3g} M tokens, {steps}"
    assert sentences[1].startswith(f"save every {fail.checkpoint_every / 60:.3g} minutes: ")
    assert sentences[2] == f"chance to have finished by {by}: {run.chance_within(400):.0%}, when started today"
    low, high, _ = life(shape.active_parameters, run.tokens, count("2t")).serving
    assert sentences[3] == f"serving is {low:.0%} to {high:.0%} of what the model costs in its life"
    assert "8.03 billion weights" in table.title and len(table.rows) == len(known)
    first, best = layouts.rows[0], run.layouts[0]
    assert first[:3] == [best.layout.label, round(best.rate.tokens.value), f"{best.rate.mfu:.0%}"]
    assert first[4] == f"{best.layout.rows} x {best.layout.micro_batches}" and len(layouts.rows) == len(run.layouts)
    named = {part.rpartition(" ")[0] for part in first[5].split(", ")}
    assert named == {name for name, part in best.rate.parts.items() if part >= 0.05}


def test_one_device_has_no_failures_and_no_checkpoints_to_plan():
    (_, table), sentences, result = told(train.plan_train, params="1b", tokens="20b", machine="h100 sxm")
    assert "failures" not in result["forecast"] and result["chance_by_date"] is None and result["life"] is None
    assert len(sentences) == 1 and "rent" in result["forecast"]
    experts = told(train.plan_train, params="8b", active="2b", tokens="20b", machine="8x h100 sxm")[2]
    dense = told(train.plan_train, params="8b", tokens="20b", machine="8x h100 sxm")[2]
    assert experts["parameters"] == pytest.approx(dense["parameters"], rel=0.05)
    assert experts["forecast"]["device_hours"]["value"] < 0.6 * dense["forecast"]["device_hours"]["value"]


def test_a_machine_that_is_there_costs_no_rent_unless_asked():
    machine = dataclasses.replace(machine_or_this("8x h100 sxm"), measured=True)
    run = forecast_run(shape_of_size(10**9), 20 * 10**9, machine, sequence=2048)
    assert "rent" not in train.forecast_rows(run, cost(run.device_hours, machine), machine)
    asked = cost(run.device_hours, machine, per_hour=2.0)
    rows = train.forecast_rows(run, asked, machine)
    assert asked.rent_source == ASKED and rows["rent"][0].value == pytest.approx(2.0 * run.device_hours.value)


def test_what_serving_says_of_the_size():
    shape = shape_of_size(10**9)
    whole = Life(parameters=5e8, tokens=2e12, saving=0.03, serving=(0.2, 0.6, 0.4))
    assert train._of_life(None, shape) == []
    lines = train._of_life(whole, shape)
    assert lines[0].startswith("serving is 20% to 60%")
    assert lines[1].startswith("0.5 billion weights trained on 2 trillion tokens") and "for 3% less" in lines[1]
    assert len(train._of_life(dataclasses.replace(whole, saving=0.02), shape)) == 1
    assert [train._span(s) for s in (7200, 2 * 86400 - 1, 2 * 86400)] == ["2 hours", "48 hours", "2 days"]


TUNE = {"rows": "5k", "row_tokens": 256, "epochs": 2.0}


def test_a_tuning_plan_says_what_each_method_takes():
    (table, chosen), sentences, result = told(tune.plan_tune, "llama-3.1-8b", **TUNE, machine="2x h100 sxm")
    machine, named = machine_or_this("2x h100 sxm"), named_shape("llama-3.1-8b")
    settings = PlanSettings.model_validate(TUNE | {"machine": "2x h100 sxm"})
    options = [tune.best_option(m, named.shape, settings, machine, 2.56e6) for m in tune.METHODS]
    assert [row[:3] for row in table.rows] == [[o.method, o.fits(machine), o.tuning.rows] for o in options]
    (best,) = (o for o in options if o.method == result["method"])
    assert result["rows_at_once"] == best.tuning.rows and result["fits"]["lora"] == "yes" and not sentences
    assert best.hours.value == pytest.approx(2.56e6 / best.rate.value / 3600)
    assert best.hours.low == pytest.approx(2.56e6 / best.rate.high / 3600) and best.hours.low < best.hours.high
    known = result["forecast"]
    assert known["time"]["value"] == pytest.approx(best.hours.value * 3600 / 2)
    money = cost(best.hours, machine)
    assert known["energy"]["value"] == pytest.approx(money.energy.value * 3.6e6)
    assert known["rent"]["value"] == money.rent.value and "2.56 M tokens" in chosen.title
    for option, row in zip(options, table.rows, strict=True):
        parts = option.parts
        assert row[3]["value"] == option.memory.value and row[4]["value"] == parts.weights
        assert row[5]["value"] == parts.adapters + parts.optimizer + parts.gradients
        assert row[6]["value"] == parts.activations + max(parts.working, parts.logits)
        assert row[7]["value"] == pytest.approx(option.hours.value * 1800)
        shown = tune._parts(parts)
        assert sum(shown.values()) == pytest.approx(parts.total) and min(shown.values()) >= 0
    full, lora, qlora = options
    assert full.memory.value > lora.memory.value > qlora.memory.value
    assert qlora.hours.value > lora.hours.value, "weights have to be unpacked"


def test_as_many_rows_at_once_as_make_it_fast_and_no_more():
    machine, named = machine_or_this("h100 sxm"), named_shape("llama-3.1-8b")
    settings = PlanSettings.model_validate(TUNE)
    best = tune.best_option("lora", named.shape, settings, machine, 1e6)
    made = [
        tune._option("lora", named.shape, settings, machine, 1e6, rows, recompute)
        for rows in (1, 2, 4, 8)
        for recompute in (False, True)
    ]
    fitting = [o for o in made if o.fits(machine) == "yes"]
    fast = [o for o in fitting if o.rate.value >= 0.95 * max(o.rate.value for o in fitting)]
    assert best.memory.value == min(o.memory.value for o in fast) and len(fast) < len(fitting)


def test_it_fits_barely_where_the_upper_end_does_not():
    named, settings = named_shape("llama-3.1-8b"), PlanSettings.model_validate(TUNE)
    option = tune.best_option("lora", named.shape, settings, machine_or_this("h100 sxm"), 1e6)

    def machine(room_wanted):
        base = machine_or_this("h100 sxm")
        return dataclasses.replace(base, memory=int(base.memory * room_wanted / room(base)))

    assert option.fits(machine(1.01 * option.memory.high)) == "yes"
    assert option.fits(machine(0.99 * option.memory.high)) == "barely"
    assert option.fits(machine(0.99 * option.memory.value)) == "no"


def test_a_price_is_two_numbers_that_are_not_below_zero():
    def price(**asked):
        return pay_off.requested_price(PlanSettings.model_validate(asked))

    assert (price(api_price="3,15").input, price(api_price="0,15").output) == (3.0, 15.0)
    assert price(api_price="3,15", against="mine").id == "mine" and price(against="gpt-5").output > 0
    for wrong in ("3", "3,-1", "-1,3", "1,2,3"):
        with pytest.raises(UsageError, match="is no price"):
            price(api_price=wrong)


API = {"api_price": "2,10", "machine": "rtx 4090", "speed": 50.0}


def test_speeds_that_were_measured_are_nearly_exact():
    _, _, result = told(pay_off.plan_pay_off, "mine", **API)
    speed = result["forecast"]["speed"]
    assert (speed["value"], speed["low"], speed["high"]) == (50.0, 50 / 1.05, 50 * 1.05)
    slow_reading = told(pay_off.plan_pay_off, "mine", **API, prompt_speed=50.0)[2]
    # 1,000 requests a day of 800 read and 250 written tokens: ten times as fast read where that is not said
    assert result["busy_hours"] == pytest.approx((800 / 500 + 250 / 50) / 3.6)
    assert slow_reading["busy_hours"] == pytest.approx((800 / 50 + 250 / 50) / 3.6)
    day = result["forecast"]["the_API_a_day"]
    assert day["value"] == pytest.approx(800 * 2 / 1e3 + 250 * 10 / 1e3) and day["source"] == "asked"
    assert "paid_off" not in result["forecast"]
    bought = told(pay_off.plan_pay_off, "mine", **API, purchase=2000.0, price_per_kwh=0.3)[2]
    saved = day["value"] - bought["forecast"]["here_a_day"]["value"]
    assert bought["forecast"]["paid_off"]["value"] == pytest.approx(86400 * 2000 / saved)
    assert bought["forecast"]["here_a_day"]["source"] == "asked"


@pytest.mark.parametrize(
    ("change", "purchase", "lines"),
    [
        ({"busy": 24.5}, 0, ["would work 24 hours a day: too slow"]),
        ({"busy": 24.0, "days": None}, 0, ["works 24 hours a day", "it never pays off"]),
        ({}, 0, ["works 3 hours a day", "costs 4 times as much"]),
        (
            {},
            900,
            ["works 3 hours a day", "paid after 300 days; 90% that it is within 3 years", "even over 3 years at 70"],
        ),
        ({"requests": None}, 900, ["works 3 hours a day", "paid after 300 days"]),
    ],
)
def test_what_a_pay_off_says(change, purchase, lines):
    around = Interval(1.0, 0.9, 1.1)
    plan = dataclasses.replace(PayOff(around, 4.0, 3.0, Interval(300.0, 200.0, 400.0), 0.9, 70.0, around), **change)
    settings = PlanSettings.model_validate({"purchase": purchase})
    api = pay_off.requested_price(PlanSettings.model_validate({"api_price": "1,1"}))
    said = pay_off._sentences(plan, settings, machine_or_this("rtx 4090"), api)
    assert len(said) == len(lines) and all(part in line for part, line in zip(lines, said, strict=True)), said


@pytest.mark.parametrize(
    ("texts", "says"), [(1, "does not fit in NVIDIA GeForce RTX 4090"), (2, " with 2 texts at once")]
)
def test_a_model_that_is_too_large_is_said_to_be(texts, says):
    asked = API | {"speed": None, "texts": texts}
    with pytest.raises(ResourceError) as refused:
        told(pay_off.plan_pay_off, "llama-3.1-405b", **asked)
    assert says in refused.value.what and (" at once" in refused.value.what) == (texts > 1)
