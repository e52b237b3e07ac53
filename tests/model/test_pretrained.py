"""Models from files: every family, from GGUF and from Hugging Face's layout, and what is refused."""

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch

from settle.base.errors import FormatError, SettleError, UsageError
from settle.base.models import StoredModel, add_model
from settle.base.registry import part, part_names
from settle.formats.gguf import export_gguf
from settle.formats.safetensors import export_safetensors
from settle.model.pretrained import Pretrained
from settle.model.source import hash_of

FAMILIES = part_names("model/architectures")


def _made(family: str, tokenizer) -> tuple:
    """A model of the family with settle's tokenizer, its weights drawn at random, norms too."""
    architecture = part("model/architectures", family)
    shape = architecture.TINY.model_copy(update={"vocab_size": tokenizer.vocab_size})
    model = shape.build(0)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(torch.randn(p.shape, generator=random) * 0.1)
    return shape, {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["gguf", "hf"])
def test_what_was_written_is_read(tiny, tmp_path, family, kind):
    shape, weights = _made(family, tiny.tokenizer)
    path = tmp_path / ("x.gguf" if kind == "gguf" else "x")
    if kind == "gguf":
        export_gguf(shape, weights, tiny.tokenizer, path, "f32")
    else:
        export_safetensors(shape, weights, tiny.tokenizer, path)
    opened = Pretrained.open(path)
    assert opened.stored.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(opened.read(name), tensor, rtol=1e-6, atol=1e-6)
    assert opened.tokenizer.encode("def f(x):").tolist() == tiny.tokenizer.encode("def f(x):").tolist()
    assert opened.chat_template == tiny.tokenizer.chat_template
    assert opened.source.sha256 == hash_of(path) and opened.name == "x"


@pytest.mark.parametrize(("dtype", "error"), [("bf16", 2**-8), ("q8_0", 2**-6)])
def test_a_quantized_file_is_read_as_it_is(tiny, tmp_path, dtype, error):
    path = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "x.gguf", dtype)
    opened = Pretrained.open(path)
    for name, tensor in tiny.weights.items():
        assert (opened.read(name) - tensor).abs().max() <= error * tensor.abs().max()
    assert set(opened.kinds) == {"F32", dtype.upper()}


def test_sharded(tiny, tmp_path):
    export_safetensors(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "x", shard_bytes=100_000)
    opened = Pretrained.open(tmp_path / "x")
    for name, tensor in tiny.weights.items():
        torch.testing.assert_close(opened.read(name), tensor, rtol=0, atol=0)
    shard = min((tmp_path / "x").glob("model-*.safetensors"))
    shard.unlink()
    with pytest.raises(FormatError, match=shard.name):
        Pretrained.open(tmp_path / "x")


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    return export_safetensors(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "model")


def test_pickled_weights_are_refused_unopened(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(FormatError, match=r"only as pickle \(pytorch_model.bin\)"):
        Pretrained.open(folder)


def test_an_unknown_architecture_names_the_known(folder, tiny, tmp_path):
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "mamba"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match="'mamba' is not known.*llama.*qwen3"):
        Pretrained.open(folder)
    path = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "x.gguf", "f32")
    path.write_bytes(path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba", 1))
    with pytest.raises(FormatError, match="'mamba' is not known"):
        Pretrained.open(path)


@pytest.mark.parametrize(
    ("gone", "says"),
    [("tokenizer.json", "no tokenizer.json"), ("config.json", "no config.json"), ("model.safetensors", "safetensors")],
)
def test_a_folder_that_is_not_whole(folder, gone, says):
    (folder / gone).unlink()
    with pytest.raises(FormatError, match=says):
        Pretrained.open(folder)


def test_a_tensor_too_few_or_too_many(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(FormatError, match="model: it lacks model.layers.2"):
        Pretrained.open(folder)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(FormatError, match="holds model.layers.1"):
        Pretrained.open(folder)
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(FormatError, match="has the shape .* is needed"):
        Pretrained.open(folder)


def test_an_unsupported_type_is_named(tiny, tmp_path):
    """The same bytes called IQ4_NL, whose blocks are as large as Q4_0's."""
    path = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "x.gguf", "q8_0")
    raw = path.read_bytes()
    name = b"blk.0.ffn_up.weight"
    at = raw.index(name) + len(name) + 4 + 16
    assert struct.unpack_from("<I", raw, at) == (8,)
    # Q8_0 has 34 bytes a block; TQ2_0 of 256 values takes less, so the tensors still lie apart
    path.write_bytes(raw[:at] + struct.pack("<I", 20) + raw[at + 4 :])
    with pytest.raises(FormatError, match="blk.0.ffn_up.weight is IQ4_NL, which is not read here"):
        Pretrained.open(path)


def test_names_of_the_store(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path / "home"))
    with pytest.raises(UsageError, match="no model 'mine'.*settle pull mine"):
        Pretrained.open("mine")
    add_model(StoredModel("mine", "safetensors", folder, "abc", str(folder), "mit"))
    opened = Pretrained.open("mine")
    assert opened.name == "mine" and opened.source.sha256 == "abc" and opened.license == "mit"
    with pytest.raises(UsageError, match="known: mine"):
        Pretrained.open("other")
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(SettleError, match="are gone from"):
        Pretrained.open("mine")
