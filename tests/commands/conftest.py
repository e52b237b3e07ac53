import pytest

from settle.evaluate.gate.behaviour import BRIEF
from settle.evaluate.report import curves
from tests.trained import trained


@pytest.fixture(scope="session")
def tiny():
    """A tiny trained model: part, model, tokenizer, held_out, weights."""
    return trained()


@pytest.fixture(autouse=True, scope="module")
def brief_exports():
    """Every run ends with the gate and a picture, which tests/evaluate/ proves: here the gate compares an eighth of the
    positions, and nothing is drawn. Commands that are processes of their own do all of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vars(BRIEF), "num_logprobs", BRIEF.num_logprobs // 8)
        patch.setattr(curves, "picture", lambda *_: b"\x89PNG\r\n\x1a\n")
        yield
