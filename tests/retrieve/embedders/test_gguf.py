"""GGUF embedders against transformers: through llama.cpp and through torch, with prefixes and pooling."""

import shutil

import numpy as np
import pytest

from settle.base.errors import DataError, UsageError
from settle.base.event_log import Events
from settle.formats.gguf import export_gguf
from settle.library.pull.encoder_gguf import encoder_to_gguf
from settle.retrieve.index.chunkers.structure import Structure
from settle.retrieve.index.collection import Collection, IndexParts, create
from settle.retrieve.index.embedders import gguf as gguf_module
from settle.retrieve.index.embedders.gguf import MANY, Gguf, known
from settle.retrieve.index.stores.lancedb import Lancedb
from settle.retrieve.index.update_index import update
from settle.retrieve.search import search
from tests.bert import TEXTS, reference, tiny_bert
from tests.trained import trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("bert") / "all-minilm")


@pytest.fixture(scope="module")
def file(folder):
    return encoder_to_gguf(folder, folder.parent / "all-minilm.gguf", "all-minilm", "")


def _opened(file, **settings):
    return Gguf(model=str(file), **settings).open()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_few_texts_and_many_give_the_vectors_of_transformers(tmp_path, pooling, monkeypatch):
    folder = tiny_bert(tmp_path / "bert", pooling)
    file = encoder_to_gguf(folder, tmp_path / "bert.gguf", "bert", "")
    expected = reference(folder, TEXTS)
    with _opened(file) as few, _opened(file) as many:
        on_numpy = few.documents(TEXTS)
        assert not {"_encoder", "_engine"} & {*vars(few)} and on_numpy.shape == (len(TEXTS), 64)
        monkeypatch.setattr(gguf_module, "SMALL", file.stat().st_size - 1)
        by_llama = few.documents(TEXTS)
        assert "_encoder" not in vars(few) and "_engine" in vars(few)
        assert on_numpy.dtype == by_llama.dtype == np.float32
        by_torch = many.documents(TEXTS * MANY)[: len(TEXTS)]
        assert "_engine" not in vars(many)
        assert np.abs(many.query(TEXTS[0]) - expected[0]).max() < 0.02 and "_engine" not in vars(many)
    assert np.abs(by_llama - expected).max() < 1e-3 and np.abs(on_numpy - expected).max() < 1e-3
    assert (by_torch * expected).sum(1).min() > 0.999
    assert np.abs(np.linalg.norm(by_torch, axis=1) - 1).max() < 1e-5


def test_prefixes_stand_before_texts_and_are_part_of_the_identity(file):
    with _opened(file) as plain, _opened(file, query_prefix="query ", document_prefix="passage ") as prefixed:
        assert np.allclose(prefixed.query("the key"), plain.query("query the key"), atol=1e-5)
        assert np.allclose(prefixed.documents(["the key"]), plain.documents(["passage the key"]), atol=1e-5)
        assert prefixed.identity != plain.identity and prefixed.most == plain.most - 1
        assert plain.queries([]).shape == (0, 64)


def test_tokens_are_counted_without_those_around_and_nothing_is_cut_off(file):
    with _opened(file, most=32) as opened:
        assert opened.most == 30
        assert opened.count(["the key", "", "how, server?"]) == [2, 0, 4]
        assert opened.documents(["the " * 30]).shape == (1, 64)
        for texts in (["the " * 31], ["the " * 31] * MANY):
            with pytest.raises(DataError, match="has 33 tokens, and all-minilm reads 32"):
                opened.documents(texts)
        halves = opened.queries(["the " * 16, "key " * 16]).mean(0)
        assert np.allclose(opened.query("the " * 16 + "key " * 16), halves / np.linalg.norm(halves), atol=1e-5)
        assert opened.query("x" * 80).shape == (64,)
    assert _opened(file).most == 62  # what the model has places for


def test_other_weights_and_other_pooling_are_another_identity(file, tmp_path):
    others = [tiny_bert(tmp_path / "seed", seed=1), tiny_bert(tmp_path / "cls", pooling="cls")]
    found = {_opened(encoder_to_gguf(f, f.with_suffix(".gguf"), "all-minilm", "")).identity for f in others}
    assert len({*found, _opened(file).identity}) == 3
    copied = shutil.copyfile(file, tmp_path / "elsewhere.gguf")
    assert _opened(copied).identity == _opened(file).identity


@pytest.mark.parametrize(
    ("name", "query", "document"),
    [
        ("nomic-embed-text-v1.5", "search_query: ", "search_document: "),
        ("Bge Small En v1.5", "Represent this sentence for searching relevant passages: ", ""),
        ("bge-m3", "", ""),
        ("E5 Base v2", "query: ", "passage: "),
        ("multilingual-e5-small", "query: ", "passage: "),
        ("embeddinggemma-300M", "task: search result | query: ", "title: none | text: "),
        ("snowflake-arctic-embed-l-v2.0", "query: ", ""),
    ],
)
def test_prefixes_are_known_by_name(name, query, document):
    model = known(["", name])
    assert (model.query, model.document) == (query, document)


def _said(embedder):
    said = []
    embedder.prepare(Events(listeners=[lambda event: said.append(event.text)]))
    return " ".join(said)


def test_what_is_not_known_of_a_model_is_said(file, tmp_path):
    model, path = trained(), tmp_path / "writer.gguf"
    export_gguf(model.part, model.weights, model.tokenizer, path)
    assert not _said(Gguf(model=str(file)))
    said = _said(Gguf(model=str(path)))
    assert "their mean is taken" in said and "not trained as an embedder" in said and "query_prefix" in said
    assert "query_prefix" not in _said(Gguf(model=str(path), query_prefix="", document_prefix=""))
    with _opened(path) as opened:  # a tokenizer of another kind
        own = [len(model.tokenizer.encode(text)) for text in ("def f(x):", "return")]
        assert opened.count(["def f(x):", "return"]) == own
        texts = ["def f(x):", "return x + 1", "import os"] * 3
        assert np.allclose(opened.documents(texts)[:1] @ opened.query(texts[0]), 1, atol=1e-3)


def test_what_is_no_embedder(home, folder, file, tmp_path):
    for what, says in (("", "no model is given"), ("nothing", "there is no model"), (str(folder), "no GGUF file")):
        with pytest.raises(UsageError, match=says):
            Gguf(model=what).open()
    key = b"bert.pooling_type" + (4).to_bytes(4, "little")
    raw = file.read_bytes().replace(key + b"\1", key + b"\4")
    (tmp_path / "ranks.gguf").write_bytes(raw)
    with pytest.raises(UsageError, match="is a reranker"):
        Gguf(model=str(tmp_path / "ranks.gguf")).open()


def test_vectors_of_two_embedders_are_never_compared(home, tmp_path):
    """A collection keeps to the embedder that it was made with."""
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "a.md").write_text("# Keys\n\nRotate the key, and restart the server.\n")
    files = [
        encoder_to_gguf(tiny_bert(tmp_path / f"b{i}", seed=i), tmp_path / f"b{i}.gguf", "bert", "") for i in (0, 1)
    ]
    embedder = Gguf(model=str(files[0]))
    with create("docs") as docs:
        docs.decide(IndexParts(embedder, Lancedb(), Structure()))
        docs.follow([documents])
        update(docs, Events())
        for other in (Gguf(model=str(files[0]), query_prefix="query: "), Gguf(model=str(files[1]))):
            with pytest.raises(UsageError, match="is made with gguf"):
                docs.decide(IndexParts(other, Lancedb(), Structure()))
    shutil.copyfile(files[1], files[0])
    with Collection("docs") as docs, pytest.raises(DataError, match="another version of gguf"):
        search(docs, "the key")
