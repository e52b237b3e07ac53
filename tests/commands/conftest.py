import pytest

from settle.evaluate.gate.behaviour import BRIEF
from settle.evaluate.report import curves
from tests.trained import trained


@pytest.fixture(scope="session")
def tiny():
    """A tiny trained model: part, model, tokenizer, held_out, weights."""
    return trained()


@pytest.fixture(autouse=True)
def brief_exports(monkeypatch):
    """Every run ends with the gate and a picture, which tests/evaluate/ proves: here the gate compares an eighth of the
    positions, and nothing is drawn. Commands that are processes of their own do all of it."""
    monkeypatch.setitem(vars(BRIEF), "num_logprobs", BRIEF.num_logprobs // 8)
    monkeypatch.setattr(curves, "picture", lambda *_: b"\x89PNG\r\n\x1a\n")
