"""The law of this machine is what two runs say, worked out by hand."""

from dataclasses import replace

import pytest

from settle.library.catalogue import known_model
from settle.machine import described
from settle.plan.fit.here import PROMPT, WRITTEN, Measured, law_here
from settle.plan.fit.model_shapes import NamedShape
from settle.plan.fit.speed import decode_rate, decode_terms, laws, prefill_rate, prefill_terms

MACHINE = replace(described("cpu ddr5-5600 dual channel"), measured=True)


def measured(name, decode=None, prefill=None):
    """A run that obeys 1.7 of the bytes and 5 of the layers, and 2.5 of the arithmetic."""
    model = NamedShape(name, known_model(name).shape, "test", "q8_0", 1)
    terms = decode_terms(model.shape, "q8_0", MACHINE, PROMPT + WRITTEN // 2)
    reading = prefill_terms(model.shape, "q8_0", MACHINE, PROMPT)
    seconds = 1.7 * terms["bytes"] + 5 * terms["layers"]
    return Measured(model, decode or 1 / seconds, prefill or 1 / (2.5 * reading["float32"]), 0)


def test_two_runs_give_both_numbers_and_predict_a_third_model():
    law = law_here([measured("smollm2-135m"), measured("qwen2.5-1.5b")], MACHINE)
    assert law.decode["bytes"] == pytest.approx(1.7) and law.decode["layers"] == pytest.approx(5)
    third = measured("llama-3.2-1b")
    rate = decode_rate(third.model.shape, "q8_0", MACHINE, PROMPT + WRITTEN // 2, law=law)
    assert rate.value == pytest.approx(third.decode) and rate.why.startswith("runs on this machine")
    assert prefill_rate(third.model.shape, "q8_0", MACHINE, law, PROMPT).value == pytest.approx(third.prefill, rel=0.01)


def test_one_run_corrects_one_number_and_none_leaves_the_law():
    law = law_here([measured("smollm2-135m")], MACHINE)
    assert set(law.decode) == {"bytes"} and law.rows == 1
    assert law_here([], MACHINE) == laws()["cpu"]


def test_runs_that_contradict_each_other_give_no_negative_cost():
    law = law_here([measured("smollm2-135m", decode=1000.0), measured("qwen2.5-1.5b", decode=0.5)], MACHINE)
    assert all(value >= 0 for value in law.decode.values()) and any(law.decode.values())
