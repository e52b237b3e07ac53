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
from settle.library.pull.bert import bert_to_gguf
from settle.model.encoder import Encoder, EncoderOptions, encoder_of_gguf, padded
from settle.model.reranker import Reranker
from settle.retrieve.answer.answer_judge import WEIGHTS, AnswerJudge
from settle.retrieve.index.catalogue.records import Passage
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


def test_the_judge_on_numpy_scores_as_the_reranker_on_torch(file: Weights, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Reranker(encoder_of_gguf(file).eval()).eval()
    save_file(model.state_dict(), tmp_path / "judge.safetensors")
    judge = AnswerJudge(file, tmp_path / "judge.safetensors")
    passages = [
        Passage(i, text, ("key",) * (i % 2), 0) for i, text in enumerate([*TEXTS, "rotate the key of the server"])
    ]
    scores = judge.logits("How do I rotate the key?", passages)
    tokenizer = fast_tokenizer(file.metadata)
    question = torch.tensor(tokenizer.encode("How do I rotate the key?").ids)
    for passage, score in zip(passages, scores, strict=True):
        opening, *text = tokenizer.encode(passage.text).ids
        headings = tokenizer.encode(" › ".join(passage.headings), add_special_tokens=False).ids
        with torch.inference_mode():
            alone = model.pairs([question], [torch.tensor([opening, *headings, *text])])
        assert abs(float(alone) - score) < 5e-3
    assert np.abs(judge.logits("How do I rotate the key?", passages[:2]) - scores[:2]).max() < 1e-4  # remembered states
    assert judge.logits("key", []).shape == (0,)


def test_of_a_long_passage_the_part_with_the_questions_rare_words_is_read(file: Weights, tmp_path: Path) -> None:
    """The only ids that count as rare are those above WordPiece's letters; a tiny vocabulary has none, so any part will
    do: the window never loses the tokens around it and never grows."""
    torch.manual_seed(0)
    save_file(Reranker(encoder_of_gguf(file)).state_dict(), tmp_path / "judge.safetensors")
    judge = AnswerJudge(file, tmp_path / "judge.safetensors")
    window = judge._window([2, 900, 3], Passage(0, "the key " * 200, ("server",), 0))
    assert window[0] == 2 and window[-1] == 3 and len(window) <= 2 + 96 + 6


def test_the_weights_that_ship_are_a_rerankers_and_small() -> None:
    encoder = Encoder(EncoderOptions(vocab_size=8, context=4, width=384, inner=8, heads=12, layers=0))
    shipped, own = load_file(WEIGHTS), Reranker(encoder).state_dict()
    assert {name: w.shape for name, w in shipped.items()} == {name: tuple(w.shape) for name, w in own.items()}
    assert sum(w.size for w in shipped.values()) < 200_000 and all(np.isfinite(w).all() for w in shipped.values())
