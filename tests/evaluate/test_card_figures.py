"""Numbers on a card, as people read them."""

import pytest

from settle.base.words.amounts import count_in_words
from settle.evaluate.report.card import _amount, _bytes, _cost, _number_of


@pytest.mark.parametrize(
    ("value", "text"),
    [(999, "999"), (1000, "1 thousand"), (1_234_567, "1.23 million"), (10**9, "1 billion"), (2.5e9, "2.5 billion")],
)
def test_counts(value: float, text: str) -> None:
    assert count_in_words(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(999, "999 bytes"), (1000, "1 kB"), (1_500_000, "1.5 MB"), (10**9, "1 GB"), ("many", None), (None, None)],
)
def test_bytes(value: object, text: str | None) -> None:
    assert _bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.00 EUR"), (0.004, "less than a cent"), (0.01, "0.01 EUR"), (1234.5, "1,234.50 EUR"), (None, None)],
)
def test_costs_have_a_currency(value: object, text: str | None) -> None:
    assert _cost(value, {"unit": "EUR"}) == text


def test_a_cost_without_a_forecast_has_none() -> None:
    assert _cost(2.0, None) == "2.00"


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("time", 59.6, "1 min 0 s"),
        ("time", 125, "2 min 5 s"),
        ("time", 3600, "1 h 0 min"),
        ("time", 7384, "2 h 3 min"),
        ("energy", 1800.0, "0.5 Wh"),
        ("energy", 3.6e6, "1 kWh"),
        ("peak_memory", 2_500_000, "2.5 MB"),
        ("time", True, None),
        ("time", None, None),
    ],
)
def test_amounts_have_the_unit_of_what_they_are(key: str, value: object, text: str | None) -> None:
    assert _amount(key, value) == text


def test_one_is_no_plural() -> None:
    assert (_number_of(1, "step"), _number_of(2000, "step"), _number_of("x", "step")) == ("1 step", "2,000 steps", None)
