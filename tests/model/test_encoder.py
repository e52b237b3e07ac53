"""The encoder on torch and on numpy against transformers, and the reranker over it on both."""

from pathlib import Path

import numpy as np
import pytest
import torch

from settle.data.tokenizer.fast import fast_tokenizer
from settle.formats import Weights
from settle.formats.gguf import read_gguf
from settle.infer.token_states import TokenStates
from settle.library.pull.bert import bert_to_gguf
from settle.model.encoder import encoder_of_gguf, padded
from tests.bert import TEXTS, reference, tiny_bert


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def file(folder: Path) -> Weights:
    return read_gguf(bert_to_gguf(folder, folder / "tiny.gguf", "tiny", "mit"))


def test_vectors_are_those_of_transformers_and_states_the_same_on_numpy(folder: Path, file: Weights) -> None:
    ids = [encoded.ids for encoded in fast_tokenizer(file.metadata).encode_batch(TEXTS)]
    model = encoder_of_gguf(file).eval()
    with torch.inference_mode():
        rows, mask = padded(ids, model.device)
        vectors, states = model.vectors(rows, mask).numpy(), model.states(rows, mask).numpy()
    assert np.abs(vectors - reference(folder, TEXTS)).max() < 2e-3  # matrices are in f16
    on_numpy, words, is_token = TokenStates(file).read(ids)
    assert (is_token == mask.numpy()).all()
    assert np.abs(on_numpy - states)[is_token].max() < 5e-3  # its GELU is the approximation by tanh
    centred = model.tokens.weight - model.tokens.weight.mean(0)
    assert np.abs(words[0, 1] - centred[ids[0][1]].detach().numpy()).max() < 1e-6
