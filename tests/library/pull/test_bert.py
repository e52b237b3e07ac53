"""A BERT of Hugging Face's layout becomes the GGUF file that llama.cpp runs."""

import json

import pytest

from settle.base.errors import FormatError
from settle.formats.gguf import embeds, pooling, read_gguf
from settle.formats.safetensors import read_safetensors
from settle.library.pull.bert import bert_to_gguf, is_bert
from tests.bert import tiny_bert


def test_the_file_holds_what_the_folder_does(tmp_path):
    folder = tiny_bert(tmp_path / "bert", pooling="cls")
    assert is_bert(folder)
    file = read_gguf(bert_to_gguf(folder, tmp_path / "a.gguf", "tiny-bert", "mit"))
    assert embeds(file.metadata) and pooling(file.metadata) == "cls" and file.metadata["general.name"] == "tiny-bert"
    ours = file.tensors["blk.1.attn_q.weight"].load()
    theirs = read_safetensors(folder).tensors["encoder.layer.1.attention.self.query.weight"].load()
    assert abs(ours - theirs).max() < 1e-3 and not any("pooler" in name for name in file.tensors)
    again = bert_to_gguf(folder, tmp_path / "b.gguf", "tiny-bert", "mit")
    assert again.read_bytes() == (tmp_path / "a.gguf").read_bytes()


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("config.json", {"hidden_act": "relu"}, "a BERT variant that llama.cpp does not run"),
        ("config.json", {"position_embedding_type": "relative_key"}, "a BERT variant that llama.cpp does not run"),
        ("config.json", {"num_hidden_layers": 3}, "disagree about encoder.layer.2"),
        ("tokenizer.json", {"model": {"type": "Unigram"}}, "not BERT's WordPiece"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "in several ways"),
    ],
)
def test_what_is_not_such_a_model_is_refused(tmp_path, file, change, says):
    folder = tiny_bert(tmp_path / "bert")
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FormatError, match=says):
        bert_to_gguf(folder, tmp_path / "a.gguf", "tiny-bert", "")
    assert not list(tmp_path.glob("*.gguf"))


def test_a_folder_that_says_nothing_is_no_bert(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    assert not is_bert(tmp_path)
    with pytest.raises(FormatError, match="config.json of"):
        is_bert(tmp_path / "gone")
