"""The encoder on torch and on numpy against transformers, and the reranker over it on both."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from settle.data.tokenizer.fast import fast_tokenizer
from settle.formats import Weights
from settle.formats.gguf import read_gguf
from settle.infer.token_states import TokenStates
from settle.library.pull.encoder_gguf import encoder_to_gguf
from settle.model.encoder import Encoder, EncoderOptions, Reranker, encoder_of_gguf, file_names, layers_apart, padded
from settle.retrieve.answer.answer_judge import SCALE, TEXT_TOKENS, WEIGHTS, AnswerJudge
from settle.retrieve.index.catalogue import Passage
from settle.retrieve.index.embedders._bert import BertEncoder
from tests.bert import TEXTS, reference, tiny_bert


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def file(folder: Path) -> Weights:
    return read_gguf(encoder_to_gguf(folder, folder / "tiny.gguf", "tiny", "mit"))


def test_vectors_are_those_of_transformers_and_states_the_same_on_numpy(folder: Path, file: Weights) -> None:
    ids = [encoded.ids for encoded in fast_tokenizer(file.metadata).encode_batch(TEXTS)]
    model = encoder_of_gguf(file).eval()
    with torch.inference_mode():
        rows, mask = padded(ids, model.device)
        vectors, states = model.vectors(rows, mask).numpy(), model.states(rows, mask).numpy()
    assert np.abs(vectors - reference(folder, TEXTS)).max() < 2e-3  # matrices are in f16
    embedded = BertEncoder(file).embed(ids)  # in the type that is fastest here
    assert np.abs(embedded - vectors).max() < 0.05 and np.linalg.norm(embedded, axis=1) == pytest.approx(1, abs=1e-3)
    on_numpy, is_token = TokenStates(file).read(ids)
    assert (is_token == mask.numpy()).all()
    assert np.abs(on_numpy - states)[is_token].max() < 5e-3  # its GELU is the approximation by tanh


def written(model: Reranker, path: Path) -> Path:
    names = file_names(len(model.encoder.blocks))
    save_file({names.get(name, name): weight for name, weight in model.state_dict().items()}, path)
    return path


def stirred(file: Weights) -> Reranker:
    """A reranker whose weights are not those that it begins with, of which many are zero."""
    torch.manual_seed(0)
    model = Reranker(encoder_of_gguf(file)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def test_the_judge_on_numpy_reads_as_the_reranker_on_torch(file: Weights, tmp_path: Path) -> None:
    model = stirred(file)
    judge = AnswerJudge(file, written(model, tmp_path / "judge.safetensors"))
    passages = [
        Passage(i, text, ("key",) * (i % 2), 0) for i, text in enumerate([*TEXTS, "rotate the key of the server"])
    ]
    readings = judge.read("How do I rotate the key?", passages)
    tokenizer = fast_tokenizer(file.metadata)
    question = torch.tensor(tokenizer.encode("How do I rotate the key?").ids)
    for passage, reading in zip(passages, readings, strict=True):
        opening, *text = tokenizer.encode(passage.text).ids
        headings = tokenizer.encode(" › ".join(passage.headings), add_special_tokens=False).ids
        with torch.inference_mode():
            logits, shares = model.read([question], [torch.tensor([opening, *headings, *text])])
        assert abs(float(logits) - reading.logit) < 5e-3
        best = int(shares[0, 1 + len(headings) : -1].argmax()) + 1
        assert reading.at == tokenizer.encode(passage.text).offsets[best][0]
    assert np.ptp([reading.logit for reading in readings]) > 0.1
    assert judge.read("key", []) == []


def test_what_is_trained_are_the_layers_that_read_both_texts(file: Weights) -> None:
    model = stirred(file)
    layers = len(model.encoder.blocks)
    assert len(model.blocks) == layers - layers_apart(layers) > 0
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    pair = [torch.tensor([2, 5, 9, 3])], [torch.tensor([2, 9, 7, 11, 3])]
    model.pairs(*pair).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "bias" not in n)
    with torch.no_grad():
        beside = model.pairs([*pair[0], torch.tensor([2, 8, 3])], [*pair[1], torch.arange(2, 30)])
        alone = model.pairs(*pair)
    assert abs(float(beside[0] - alone[0])) < 1e-4


def test_of_a_long_passage_the_part_with_the_questions_words_is_read(file: Weights, tmp_path: Path) -> None:
    judge = AnswerJudge(file, written(stirred(file), tmp_path / "judge.safetensors"))
    text = f"{'the server ' * 80}rotate the key {'the server ' * 80}"
    window = judge.window(
        [2, *judge._tokenizer.encode("rotate key", add_special_tokens=False).ids, 3], Passage(0, text, (), 0)
    )
    assert len(window.ids) == len(window.places) == TEXT_TOKENS + 2
    begun = [place for place in window.places if place >= 0]
    assert begun == sorted(begun) and len(begun) == TEXT_TOKENS


def test_the_weights_that_ship_are_a_rerankers_over_minilm_and_small() -> None:
    encoder = Encoder(EncoderOptions(vocab_size=8, context=4, width=384, inner=1536, heads=12, layers=6))
    own, names, shipped = Reranker(encoder).state_dict(), file_names(6), load_file(WEIGHTS)
    weights = {name: weight.shape for name, weight in shipped.items() if not name.endswith(SCALE)}
    assert weights == {names.get(name, name): tuple(weight.shape) for name, weight in own.items()}
    assert all(
        (weight.dtype == np.int8) == (name + SCALE in shipped) for name, weight in shipped.items() if name in weights
    )
    assert WEIGHTS.stat().st_size < 8e6 and all(np.isfinite(weight).all() for weight in shipped.values())
