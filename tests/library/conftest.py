import pytest

from tests.trained import trained


@pytest.fixture(scope="session")
def tiny():
    """A tiny trained model: part, model, tokenizer, held_out, weights."""
    return trained()
