"""Prices, money and the day on which a model of one's own pays off."""

import datetime
import hashlib

import pytest

from settle.base.errors import DataError, UsageError
from settle.base.event_log import Events
from settle.base.files import dated_file
from settle.base.statistics import Interval
from settle.library.prices import ApiPrice, prices, read_prices
from settle.library.update import update_data
from settle.machine.described_machine import described
from settle.plan.cost import (
    OF_DESIGN_POWER,
    SERVING_POWER,
    Workload,
    api_dollars,
    cost,
    exact,
    life,
    pay_off,
    product,
    tokens_for,
)
from settle.plan.loss_law import left_over

API = ApiPrice(id="api", vendor="v", input=1.0, output=4.0, cached=0.1)
LOAD = Workload(requests=1000, input_tokens=1000, output_tokens=500)


def test_a_model_that_is_served_much_should_be_smaller():
    """Sardana et al.: with much demand, smaller models on more text; without any, Hoffmann's optimum."""
    alone = life(70e9, 1.4e12, 1.0)
    assert 20e9 < alone.parameters < 40e9 and alone.serving[2] < 1e-6
    busy = life(70e9, 1.4e12, 100e12)
    assert busy.parameters < 0.6 * alone.parameters and busy.tokens > alone.tokens and busy.saving > 0.1
    assert busy.serving[0] < busy.serving[2] < busy.serving[1] < 1
    assert left_over(busy.parameters, busy.tokens) == pytest.approx(left_over(70e9, 1.4e12))
    assert tokens_for(1e6, left_over(70e9, 1.4e12)) is None


def test_prices_are_dated_ordered_and_found_by_name():
    table = prices()
    assert table.date >= table.api.as_of and all(row.as_of <= table.date for row in table.rent.values())
    assert table.api_price("openai/GPT-5-mini").output > table.api_price("gpt-5-mini").input
    with pytest.raises(UsageError, match="no price") as error:
        table.api_price("gpt-5-minii")
    assert "gpt-5-mini" in error.value.fix


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("date = 2026-01-01\n", "no table of prices"),
        ("date = [\n", "no table of prices"),
        (None, "in the future"),
        ("swapped", "not in this order"),
    ],
)
def test_a_broken_or_future_table_is_refused_with_its_row(tmp_path, text, what):
    from settle.library import prices as module

    good = module.Path(module.__file__).with_name("prices.toml").read_text(encoding="utf-8")
    if text is None:
        text = good.replace("date = 2026", "date = 2999", 1)
    elif text == "swapped":
        text = good.replace("low = 1.99, usual = 2.95", "low = 3.99, usual = 2.95", 1)
    path = tmp_path / "prices.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=what):
        read_prices(path)


def test_a_persons_own_file_replaces_the_table(tmp_path, monkeypatch):
    from settle.library import prices as module

    good = module.Path(module.__file__).with_name("prices.toml").read_text(encoding="utf-8")
    newer = good.replace("usual = 0.175", "usual = 0.21").replace("date = 2026-11-28", "date = 2026-11-29", 1)
    file = tmp_path / "mine.toml"
    file.write_text(newer, encoding="utf-8")
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path))
    monkeypatch.setattr(dated_file, "today", lambda: datetime.date(2026, 12, 1))
    try:
        update_data(str(file), hashlib.sha256(newer.encode()).hexdigest(), Events())
        assert prices().electricity.usual == 0.21
    finally:
        prices.cache_clear()


def test_energy_and_money_follow_from_hours():
    hours, machine = exact(100.0), described("8x h100 sxm")
    found = cost(hours, machine, per_kwh=0.5, per_hour=2.0)
    assert found.energy.value == pytest.approx(100 * 0.7 * OF_DESIGN_POWER.value)
    assert found.electricity.value == pytest.approx(0.5 * found.energy.value)
    assert found.rent.ends == (200, 200, 200) and found.bill.value == pytest.approx(200 / 0.65)
    dated = cost(hours, machine)
    assert dated.rent.low < 295 < dated.rent.high and "20" in dated.rent_source
    assert "no offer" in cost(hours, described("rtx 3090")).rent_source


def test_a_product_is_no_more_certain_than_its_factors():
    one, other = Interval(10, 5, 20, 0.8), Interval(3, 1.5, 6, 0.8)
    both = product(one, other)
    assert both.value == 30 and both.low < 30 / 2 and both.high > 30 * 2 and both.high < 30 * 4
    assert product(one, exact(3.0)).ends == pytest.approx((30, 15, 60))
    small, tiny = product(one.scaled(0.01), other), product(exact(0.0), one)
    assert small.ends == pytest.approx([0.01 * end for end in both.ends]) and tiny.ends == (0, 0, 0)


def test_deepseeks_bill_is_its_hours_times_its_price():
    """2.788 M hours of H800 at 2 dollars: 5.576 M dollars, as its report has it."""
    found = cost(exact(2.788e6), described("2048x h800"), per_hour=2.0)
    assert found.rent.value == pytest.approx(5.576e6)


def test_an_api_costs_its_tokens_less_what_it_has_seen():
    assert api_dollars(LOAD, API) == pytest.approx(1000 * (1000 * 1 + 500 * 4) / 1e6)
    seen = Workload(1000, 1000, 500, cached=0.5)
    assert api_dollars(seen, API) == pytest.approx(1000 * (500 * 1 + 500 * 0.1 + 500 * 4) / 1e6)


def test_the_day_that_a_machine_is_paid_is_its_price_over_the_saving():
    speed = exact(100.0)
    plan = pay_off(LOAD, API, exact(1000.0), speed, 300.0, exact(0.3), purchase=1000.0)
    seconds = 1000 * (1000 / 1000 + 500 / 100)
    a_day = 300 * SERVING_POWER.value * seconds / 3.6e6 * 0.3
    assert plan.here.value == pytest.approx(a_day) and plan.busy == pytest.approx(seconds / 3600)
    assert plan.days is not None and plan.days.value == pytest.approx(1000 / (3.0 - a_day))
    assert plan.days.low < plan.days.value < plan.days.high and plan.chance == 1
    assert plan.requests is not None and 0 < plan.requests < 1000


def test_a_machine_that_is_too_slow_or_too_dear_never_pays_off():
    slow = pay_off(LOAD, API, exact(10.0), exact(1.0), 300.0, exact(0.3), purchase=1000.0)
    assert slow.busy > 24 and slow.days is None and slow.chance == 0
    dear = pay_off(LOAD, API, exact(1000.0), exact(100.0), 300.0, exact(20.0))
    assert dear.days is None


def test_a_wider_speed_makes_a_wider_answer():
    def width(speed: Interval) -> float:
        plan = pay_off(LOAD, API, exact(1000.0), speed, 300.0, exact(0.3), purchase=1000.0)
        return plan.here.high / plan.here.low

    assert width(Interval(100, 60, 160, 0.8)) > width(exact(100.0)) > 1


def test_the_cheapest_life_has_the_same_loss_for_less():
    """A model that is served much is smaller and sees more text than the one that trains cheapest."""
    whole = life(8e9, 1e12, 1e14)
    assert whole.parameters < 8e9 and whole.tokens > 1e12
    assert left_over(whole.parameters, whole.tokens) == pytest.approx(left_over(8e9, 1e12), rel=1e-6)
    cost_of = [p * (6 * t + 3 * 2 * 1e14) for p, t in ((8e9, 1e12), (whole.parameters, whole.tokens))]
    assert whole.saving == pytest.approx(1 - cost_of[1] / cost_of[0]) and 0 < whole.saving < 1
    low, high, expected = whole.serving
    assert 0 < low < expected < high < 1
