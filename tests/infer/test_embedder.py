"""Vectors by llama.cpp, in a real child."""

import numpy as np
import pytest

from settle.base.errors import EngineError, UsageError
from settle.infer.engine import Engine, VectorEngine
from settle.library.pull.encoder_gguf import encoder_to_gguf
from tests.bert import TEXTS, reference, tiny_bert


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("bert") / "bert")


@pytest.fixture(scope="module")
def file(folder):
    return encoder_to_gguf(folder, folder.parent / "bert.gguf", "bert", "")


def test_texts_and_ids_give_the_same_vectors_in_the_order_of_the_texts(file, folder):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = TEXTS[:2] * 5
    with VectorEngine(file, slots=2) as engine:
        vectors = engine.embed(texts)
        assert np.allclose(vectors, engine.embed([tokenizer.encode(text).ids for text in texts]), atol=1e-5)
        assert engine.count(TEXTS[0]) == len(tokenizer.encode(TEXTS[0], add_special_tokens=False))
    assert np.abs(vectors[:2] - reference(folder, TEXTS[:2])).max() < 1e-3
    assert vectors.dtype == np.float32 and vectors.shape == (10, 64)


def test_nothing_is_cut_off(file):
    with VectorEngine(file, most=16) as engine:
        assert engine.embed(["key " * 14]).shape == (1, 64)
        with pytest.raises(EngineError, match="shorten the text: bert.gguf was opened with a context of 16"):
            engine.embed(["of", "key " * 15])
        assert engine.embed(["of"]).shape == (1, 64)


def test_what_it_is_not_for(file, tmp_path):
    key = b"bert.pooling_type" + (4).to_bytes(4, "little")
    (tmp_path / "ranks.gguf").write_bytes(file.read_bytes().replace(key + b"\1", key + b"\4"))
    with pytest.raises(UsageError, match="orders passages"):
        VectorEngine(tmp_path / "ranks.gguf")
    with pytest.raises(UsageError, match="turns texts into vectors"):
        Engine(file)
    with pytest.raises(EngineError, match="not running"):
        VectorEngine(file).embed(["of"])
