"""The contract of an embedder, tried on every one: it opens, or says what is missing and what to do."""

import numpy as np
import pytest

from settle.base.errors import DataError, UsageError
from settle.library.pull.encoder_gguf import encoder_to_gguf
from settle.retrieve.index.embedders import Embedder
from tests.bert import tiny_bert

TEXTS = ["rotate the key", "the server", "the key of the server"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny_bert(tmp_path_factory.mktemp("bert") / "tiny")
    return encoder_to_gguf(folder, folder.parent / "tiny.gguf", "tiny", "")


@pytest.fixture(params=Embedder.part_names())
def embedder(request):
    return Embedder.part(request.param)


def test_without_what_it_needs_it_says_what_to_do(embedder, home):
    try:
        embedder().open().close()
    except UsageError as e:
        assert e.what and ("--embedder." in e.fix or "settle pull" in e.fix), e


def test_vectors_of_texts_and_questions(embedder, home, model):
    settings = {"model": str(model)} if "model" in embedder.model_fields and "url" not in embedder.model_fields else {}
    try:
        vectorizer = embedder.model_validate(settings).open()
    except UsageError as e:
        pytest.skip(e.what)
    with vectorizer, embedder.model_validate(settings).open() as again:
        assert vectorizer.identity and vectorizer.identity == again.identity
        vectors, questions = vectorizer.documents(TEXTS), vectorizer.queries(TEXTS)
        for rows in (vectors, questions):
            assert rows.shape == (len(TEXTS), vectorizer.width) and rows.dtype == np.float32
            assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3)
        assert vectorizer.documents([]).shape == (0, vectorizer.width)
        assert np.allclose(vectors[:1], vectorizer.documents(TEXTS[:1]), atol=1e-2)  # whatever stands beside a text
        counts = vectorizer.count([*TEXTS, ""])
        assert counts[-1] == 0 and all(0 < count <= vectorizer.most for count in counts[:-1])
        long = "the key " * vectorizer.most
        assert vectorizer.query(long).shape == (vectorizer.width,)
    vectorizer.close()  # twice is harmless


def test_a_text_that_is_too_long_is_an_error_and_never_cut(model):
    with Embedder.make("gguf", {"model": str(model)}).open() as vectorizer, pytest.raises(DataError, match="shorten"):
        vectorizer.documents(["the key " * vectorizer.most])
