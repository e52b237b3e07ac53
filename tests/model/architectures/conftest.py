import inspect
import json

import pytest
import torch

from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A tokenizer of 512 entries, for the GGUF files that tests write."""
    source = inspect.getsource(inspect.getmodule(json.JSONDecoder))
    return ByteBpeTokenizer.train([source], 512, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small are slower on more, and the suite shares its cores."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)
