"""What was predicted beside what was measured, and what it corrects."""

import math

import pytest

from settle.base.statistics import Interval
from settle.jobs.pick import predict as ledger
from settle.jobs.pick.prompts import forbids_commercial_use, languages_in


def test_measurements_here_take_the_mean_error_off(home):
    law = ledger.corrected("speed", 10.0, 0.3)
    assert law.value == 10.0 and law.low == pytest.approx(10 * math.exp(-1.2816 * 0.3), rel=1e-3)
    for model in ("a", "b", "c"):
        ledger.note(model, {"speed": (10.0, law, 20.0)})
    now = ledger.corrected("speed", 10.0, 0.3)
    # three errors of ln 2, against a law that counts as one more without any
    assert now.value == pytest.approx(10 * 2 ** (3 / 4)) and now.high / now.low < law.high / law.low
    assert ledger.corrected("memory", 10.0, 0.3).value == 10.0


def test_the_last_measurement_of_a_model_counts_and_a_busy_machine_does_not(home):
    said = Interval(1.0, 0.5, 2.0)
    ledger.note("a", {"speed": (1.0, said, 4.0), "memory": (1.0, said, 2.0)}, busy=True)
    assert ledger.corrected("speed", 1.0, 0.3).value == 1.0
    assert ledger.corrected("memory", 1.0, 0.3).value == pytest.approx(2**0.5)
    ledger.note("a", {"memory": (1.0, said, 1.0)})
    assert ledger.corrected("memory", 1.0, 0.3).value == 1.0


def test_a_damaged_ledger_loses_only_its_damaged_lines(home):
    ledger.note("a", {"memory": (1.0, Interval(1.0, 0.5, 2.0), 2.0)})
    path = home / "picks" / "ledger.jsonl"
    path.write_text(path.read_text() + '{"model": "torn', encoding="utf-8")
    assert [entry.model for entry in ledger.entries()] == ["a"]


@pytest.mark.parametrize(
    ("license", "forbids"),
    [
        ("cc-by-nc-4.0", True),
        ("Non-Commercial Licence", True),
        ("katanemo-research", True),
        ("apache-2.0", False),
        ("gemma", False),
        ("", False),
    ],
)
def test_licences_that_forbid_commercial_use(license, forbids):
    assert forbids_commercial_use(license) == forbids


def test_languages_are_read_off_the_task():
    assert languages_in("Answer support mails in German, or French") == {"de", "fr"}
    assert not languages_in("polish my code") and not languages_in("coding")
