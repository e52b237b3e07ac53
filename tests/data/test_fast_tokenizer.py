"""Tokenizers of GGUF files as the library runs them, against their own files, against llama.cpp, and ours."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from settle.base.errors import FormatError
from settle.data.tokenizer.fast import fast_tokenizer
from settle.data.tokenizer.pretrained import PretrainedTokenizer
from settle.formats.gguf import read_gguf
from settle.infer.engine import VectorEngine
from settle.library.pull import encoder_gguf
from tests.bert import TEXTS, tiny_bert
from tests.trained import trained

ODD = [
    "",
    " ",
    "\t a\n\n b ",
    "x" * 150,
    "ΆΈ İstanbul Ǆ ﬁ Ⅷ",
    "a\x00b\u200bc\ufffd",
    "[MASK] ##ing ▁x",
    "日本語 テキスト",
    "e\u0301",
]


def test_word_pieces_are_those_of_the_folder(tmp_path):
    folder = tiny_bert(tmp_path / "bert")
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    file = read_gguf(encoder_gguf.encoder_to_gguf(folder, tmp_path / "bert.gguf", "bert", ""))
    ours = fast_tokenizer(file.metadata)
    for text in [*TEXTS, *ODD]:
        assert ours.encode(text).ids == own.encode(text).ids
        assert ours.encode(text, add_special_tokens=False).ids == own.encode(text, add_special_tokens=False).ids


def test_word_pieces_keep_case_and_accents_where_the_model_does(tmp_path):
    folder = tiny_bert(tmp_path / "bert")
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["normalizer"] |= {"lowercase": False}
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    path = encoder_gguf.encoder_to_gguf(folder, tmp_path / "bert.gguf", "bert", "")
    own, ours = Tokenizer.from_str(json.dumps(raw)), fast_tokenizer(read_gguf(path).metadata)
    assert all(ours.encode(text).ids == own.encode(text).ids for text in TEXTS)
    with VectorEngine(path) as engine:
        assert all(engine.count(text) == len(ours.encode(text, add_special_tokens=False)) for text in TEXTS[:3])


def test_likeliest_pieces_are_those_of_llama_cpp(tmp_path, monkeypatch):
    folder = tiny_bert(tmp_path / "bert")
    trained_on = [*TEXTS, "restart the server and rotate the keys of all the servers " * 3, *ODD[4:]]
    own = Tokenizer(models.Unigram())
    own.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    own.train_from_iterator(
        trained_on, trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>")
    )
    pieces = json.loads(own.to_str())["model"]["vocab"]
    monkeypatch.setattr(encoder_gguf, "_WordPiece", lambda raw: _Pieces(pieces))
    config = json.loads((folder / "config.json").read_text())
    path = encoder_gguf.encoder_to_gguf(folder, tmp_path / "bert.gguf", "bert", "")
    ours = fast_tokenizer(read_gguf(path).metadata)
    assert config["vocab_size"] >= len(pieces)
    text = "restart the  server and rotate a key"
    assert ours.encode(text).ids[0] == 0 and ours.encode(text).ids[-1] == 2
    assert ours.encode(text, add_special_tokens=False).ids == own.encode("restart the server and rotate a key").ids
    with VectorEngine(path) as engine:
        for text in [*TEXTS[:2], "keys of servers", "  spaces   between  "]:
            assert engine.count(text) == len(ours.encode(text, add_special_tokens=False)), text


class _Pieces:
    """SentencePiece's likeliest pieces, as XLM-RoBERTa has them."""

    def __init__(self, pieces):
        self._pieces, self.vocab_size = pieces, len(pieces)

    def gguf_metadata(self):
        kinds = [3, 3, 3, 2, *[1] * (len(self._pieces) - 4)]
        keys = {
            "model": "t5", "pre": "default", "tokens": [token for token, _ in self._pieces], "token_type": kinds,
            "scores": [float(score) for _, score in self._pieces], "bos_token_id": 0, "eos_token_id": 2,
            "unknown_token_id": 3, "add_space_prefix": True, "remove_extra_whitespaces": True,
        }  # fmt: skip
        return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def test_bytes_that_are_merged_are_ours():
    metadata = trained().tokenizer.gguf_metadata()
    ours, theirs = fast_tokenizer(metadata), PretrainedTokenizer(metadata)
    for text in [*TEXTS[:4], *ODD, "def f(x):\n    return x\n"]:
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text).tolist(), text


def test_a_kind_that_is_not_known():
    with pytest.raises(FormatError, match="'rwkv' is not supported"):
        fast_tokenizer({"tokenizer.ggml.model": "rwkv"})
    with pytest.raises(FormatError, match="no scores"):
        fast_tokenizer({"tokenizer.ggml.model": "t5", "tokenizer.ggml.tokens": ["a"]})
