"""Rerankers in llama.cpp: a cross-encoder against transformers, the likelihood of questions against the live model."""

import json

import numpy as np
import pytest

from settle.base.errors import UsageError
from settle.base.registry import part
from settle.formats.gguf import export_gguf
from settle.formats.safetensors import read_safetensors
from settle.infer.live.sample import logprobs
from settle.infer.ranker import RankEngine
from settle.library.pull import bert
from settle.retrieve.index.records import Passage
from settle.retrieve.search.hybrid_search import Hit
from settle.retrieve.search.rerankers.cross_encoder import CrossEncoder
from settle.retrieve.search.rerankers.likelihood import Likelihood
from tests.bert import tiny_bert
from tests.trained import trained

QUESTION = "how do I rotate the key?"
PASSAGES = ["restart the server", "rotate the key now", "the cafe and the passage of 東"]


class _Ranking(bert._Bert):
    """BERT with a head over its first token: a pooler and one number."""

    def gguf_names(self):
        head = {"pooler.dense": "cls", "classifier": "cls.output"}
        return super().gguf_names() | {f"{a}.{k}": f"{b}.{k}" for a, b in head.items() for k in ("weight", "bias")}


@pytest.fixture(scope="module")
def ranking(tmp_path_factory):
    """(GGUF file, score of a question and a passage by transformers)."""
    import torch
    from tokenizers import Tokenizer
    from transformers import BertForSequenceClassification

    folder = tiny_bert(tmp_path_factory.mktemp("bert") / "ranker")
    torch.manual_seed(1)
    model = BertForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    model.bert.pooler.dense.bias.data.normal_()
    model.classifier.weight.data.normal_()
    model.save_pretrained(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def score(question: str, passage: str) -> float:
        ids = [*tokenizer.encode(question).ids, *tokenizer.encode(passage).ids[1:-1]]  # llama.cpp closes it with none
        with torch.inference_mode():
            return model(torch.tensor([ids])).logits.item()

    config = json.loads((folder / "config.json").read_text())
    found = {n.removeprefix("bert."): lazy.load() for n, lazy in read_safetensors(folder).tensors.items()}
    kind = _Ranking(config, pooling=4)
    weights = {name: found[name] for name in kind.gguf_names()}
    words = bert._WordPiece(json.loads((folder / "tokenizer.json").read_text()))
    return export_gguf(kind, weights, words, folder.parent / "ranker.gguf", "f32"), score


@pytest.fixture(scope="module")
def tiny():
    return trained()


def _hits(passages=PASSAGES):
    return [Hit(Passage(i, text, (), 4), (), 1.0 - 0.1 * i, 0.5, 0.0) for i, text in enumerate(passages)]


def test_a_cross_encoder_scores_as_transformers_does(ranking):
    file, score = ranking
    expected = [score(QUESTION, passage) for passage in PASSAGES]
    assert np.ptp(expected) > 0.1
    with RankEngine(file) as engine:
        found = engine.rank(QUESTION, PASSAGES)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 0.05


def test_the_first_hits_are_ordered_by_it_and_the_others_follow(ranking):
    file, score = ranking
    hits = _hits()
    best = sorted(hits[:2], key=lambda hit: -score(QUESTION, hit.passage.text))
    with CrossEncoder(model=str(file), first=2).open() as ranker:
        assert ranker.reranked(QUESTION, hits) == [*best, hits[2]]
        assert ranker.reranked(QUESTION, hits[:1]) == hits[:1]
    with CrossEncoder(model=str(file), weight=0.0).open() as ranker:
        assert ranker.reranked(QUESTION, hits) == hits


def test_likelihood_is_that_of_the_question_after_the_passage(tiny, tmp_path):
    pytest.importorskip("llama_cpp_py_sync")
    file = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "tiny.gguf", "f32")
    long = "a very long passage " * 200
    with Likelihood(model=str(file), first=3).open() as ranker:
        told = ranker.scores(QUESTION, [*PASSAGES, long])
    assert told.shape == (4,) and np.isfinite(told).all()
    encode = tiny.tokenizer.encode
    asked = encode(f"\n\nQuestion: {QUESTION}\n").tolist()
    for text, found in zip(PASSAGES, told, strict=False):
        ids = [*encode(f"Passage: {text}").tolist(), *asked]
        rows = logprobs(tiny.model, ids, range(len(ids) - 1)).numpy()
        came = rows[np.arange(len(rows)), ids[1:]]
        assert abs(came[-len(asked) :].mean() - found) < 1e-3


def test_no_model_and_a_model_that_does_not_rank_are_said(tiny, tmp_path):
    for name in ("cross_encoder", "likelihood"):
        with pytest.raises(UsageError, match="which (reranker|model)"):
            part("retrieve/search/rerankers", name)().open()
    file = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "tiny.gguf", "f32")
    with pytest.raises(UsageError, match="no reranker"):
        CrossEncoder(model=str(file)).open()
