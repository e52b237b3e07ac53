"""What is forecast of a file of a model that is quantized already."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from settle.evaluate.divergence import Divergence
from settle.shrink.candidates import Candidates, ShrinkCandidate
from settle.shrink.quantizers import Quantizer


def candidates(dtype: str) -> Candidates:
    """Two files that were measured, of a model in that type: predicted 0.02 and 0.04, measured three times that."""
    file = SimpleNamespace(tensors={"a": SimpleNamespace(dtype=dtype)}, metadata={})
    session: Any = SimpleNamespace(model=SimpleNamespace(file=file))
    made = Candidates(session, cast(Quantizer, None))
    for predicted in (0.02, 0.04):
        measured = cast(Divergence, SimpleNamespace(kl=SimpleNamespace(value=3 * predicted)))
        made.known[f"{predicted}"] = ShrinkCandidate(f"{predicted}", {}, 1, predicted=predicted, divergence=measured)
    return made


def test_the_forecast_of_a_requantized_file_is_what_others_cost() -> None:
    of = candidates("Q4_1")
    assert of.expected_kl(ShrinkCandidate("new", {}, 1, predicted=0.047)) == pytest.approx(0.141)
    assert of.expected_kl(of.known["0.02"]) == pytest.approx(0.06)  # its own measurement is no forecast


def test_the_forecast_of_a_whole_model_is_its_prediction() -> None:
    assert candidates("F16").expected_kl(ShrinkCandidate("new", {}, 1, predicted=0.047)) == 0.047
