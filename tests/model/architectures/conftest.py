import inspect
import json

import pytest

from settle.data.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A tokenizer of 512 entries, for the GGUF files that tests write."""
    source = inspect.getsource(inspect.getmodule(json.JSONDecoder))
    return Tokenizer.train([source], 512, tmp_path_factory.mktemp("tokenizer"))
