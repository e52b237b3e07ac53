"""A BERT of Hugging Face's layout becomes the GGUF file that llama.cpp runs."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from settle.base.errors import FormatError
from settle.data.tokenizer.fast import fast_tokenizer
from settle.formats.gguf import embeds, pooling, read_gguf
from settle.formats.safetensors import read_safetensors
from settle.infer.engine import VectorEngine
from settle.library.pull.encoder_gguf import encoder_to_gguf, has_gguf
from settle.model.encoder import padded
from settle.model.encoder_folder import EncoderFolder
from tests.bert import TEXTS, tiny_bert
from tests.encoders import tiny_encoder


def test_the_file_holds_what_the_folder_does(tmp_path):
    folder = tiny_bert(tmp_path / "bert", pooling="cls")
    assert has_gguf(EncoderFolder.open(folder))
    file = read_gguf(encoder_to_gguf(folder, tmp_path / "a.gguf", "tiny-bert", "mit"))
    assert embeds(file.metadata) and pooling(file.metadata) == "cls" and file.metadata["general.name"] == "tiny-bert"
    ours = file.tensors["blk.1.attn_q.weight"].load()
    theirs = read_safetensors(folder).tensors["encoder.layer.1.attention.self.query.weight"].load()
    assert abs(ours - theirs).max() < 1e-3 and not any("pooler" in name for name in file.tensors)
    again = encoder_to_gguf(folder, tmp_path / "b.gguf", "tiny-bert", "mit")
    assert again.read_bytes() == (tmp_path / "a.gguf").read_bytes()


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("config.json", {"hidden_act": "relu"}, "a BERT variant that llama.cpp does not run"),
        ("config.json", {"position_embedding_type": "relative_key"}, "a BERT variant that llama.cpp does not run"),
        ("config.json", {"num_hidden_layers": 3}, "disagree about encoder.layer.2"),
        ("tokenizer.json", {"model": {"type": "WordLevel"}}, "not BERT's WordPiece"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "in several ways"),
    ],
)
def test_what_is_not_such_a_model_is_refused(tmp_path, file, change, says):
    folder = tiny_bert(tmp_path / "bert")
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FormatError, match=says):
        encoder_to_gguf(folder, tmp_path / "a.gguf", "tiny-bert", "")
    assert not list(tmp_path.glob("*.gguf"))


def test_a_folder_that_says_nothing_is_no_bert(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    assert EncoderFolder.find(tmp_path) is None
    with pytest.raises(FormatError, match="config.json of"):
        EncoderFolder.find(tmp_path / "gone")


@pytest.mark.parametrize("case", ["modernbert", "xlm-roberta"])
def test_llama_cpp_gives_the_same_vectors(case, tmp_path):
    """Texts beyond ModernBERT's window of 8, and positions that begin after XLM-RoBERTa's padding."""
    folder = EncoderFolder.open(tiny_encoder(tmp_path / "hf", case, spread=0.1))
    assert has_gguf(folder)
    file = encoder_to_gguf(folder.path, tmp_path / "a.gguf", case, "mit")
    ids = [folder.tokenizer.encode(text).ids for text in [*TEXTS, "rotate the key of the server now"]]
    model = folder.encoder().eval()
    with torch.inference_mode():
        expected = model.vectors(*padded(ids, model.device)).numpy()
    with VectorEngine(file) as engine:
        assert np.abs(engine.embed(ids) - expected).max() < 5e-3
    assert np.abs(expected[0] - expected[1]).max() > 0.1


def test_a_unigram_tokenizer_is_llama_cpps(tmp_path):
    folder = tiny_encoder(tmp_path / "hf", "xlm-roberta", spread=0.1)
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz.?", "▁the", "▁key", "ro", "tate"]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(n)) for n, piece in enumerate(pieces)], 3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<mask>"][:3])
    around = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=around)
    tokenizer.save(str(folder / "tokenizer.json"))
    file = encoder_to_gguf(folder, tmp_path / "a.gguf", "x", "mit")
    texts = ["rotate the key", "the keys of the server.", "is it?"]
    ids = [tokenizer.encode(text).ids for text in texts]
    ours = fast_tokenizer(read_gguf(file).metadata)
    assert [ours.encode(text).ids for text in texts] == ids
    with VectorEngine(file) as engine:
        assert np.abs(engine.embed(texts) - engine.embed(ids)).max() < 1e-3


def test_variants_that_llama_cpp_does_not_run_are_refused(tmp_path):
    folder = tiny_encoder(tmp_path / "hf", "modernbert-biases")
    with pytest.raises(FormatError, match="a ModernBERT variant"):
        encoder_to_gguf(folder, tmp_path / "a.gguf", "x", "mit")
    assert not has_gguf(EncoderFolder.open(tiny_encoder(tmp_path / "deberta", "deberta-v3")))
