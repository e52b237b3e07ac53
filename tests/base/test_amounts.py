import math

import pytest

from settle.base.amounts import seconds
from settle.base.errors import UsageError
from settle.base.words.amounts import amount, count, duration, percent


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.25, "s", "0.2 s"),
        (59.99, "s", "1 min 00 s"),
        (200, "s", "3 min 20 s"),
        (3600, "s", "1 h 00 min"),
        (90_061, "s", "1 d 1 h"),
        (999, "bytes", "999 B"),
        (1_250_000_000, "bytes", "1.25 GB"),
        (999_999, "bytes", "1 MB"),
        (1800, "J", "0.5 Wh"),
        (7.2e6, "J", "2 kWh"),
        (1.23e7, "tokens", "12.3 M tokens"),
        (0.0021, "EUR", "0.0021 EUR"),
        (0.00000196, "money", "0.0000020"),
        (0.25, "money", "0.25"),
        (1234.5, "money", "1,234.50"),
        (82_626_233.83, "USD", "82.6 M USD"),
        (12_345.6, "USD", "12,346 USD"),
        (6.6e13, "J", "18.3 GWh"),
        (28_008_893, "h", "28 M h"),
        (7e6, "s", "81 d"),
        (2.71828, "nats", "2.718 nats"),
        (4096, "", "4,096"),
        (True, "", "yes"),
        (None, "s", "–"),
        (math.nan, "s", "unknown"),
        ("auto", "s", "auto"),
        (["a", "b"], "", "a, b"),
    ],
)
def test_amounts_are_said_as_people_say_them(value, unit, text):
    assert amount(value, unit) == text


def test_counts_and_percents():
    assert [count(9_999), count(10_000), count(1_234_567), count(3e9)] == ["9,999", "10 k", "1.23 M", "3 B"]
    assert percent(0.005) == "0.5 %" and duration(7.24) == "7.2 s"


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("6min", 360), ("1 hr 20 mins", 4800), ("2 days", 172_800)])
def test_durations_are_read_as_people_write_them(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "m", "smh5", "1h30", "-5m", "0m", "5 weeks"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(UsageError, match="duration"):
        seconds(text)
