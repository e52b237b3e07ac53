"""Models from files: every family, from GGUF and from Hugging Face's layout, and what is refused."""

import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from settle.base.errors import FormatError
from settle.base.registry import part, part_names
from settle.formats.gguf import export_gguf
from settle.formats.safetensors import export_safetensors
from settle.model.architectures.llama import Llama
from settle.model.layers.frozen_weights import FrozenBlocks, FrozenNf4
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
        # a GGUF file has the multipliers of some families in its weights, and says none
        wanted = opened.part.from_gguf_tensor(name, shape.to_gguf(name, tensor)) if kind == "gguf" else tensor
        torch.testing.assert_close(opened.read(name), wanted, rtol=1e-6, atol=1e-6)
    assert opened.tokenizer.encode("def f(x):").tolist() == tiny.tokenizer.encode("def f(x):").tolist()
    assert opened.chat_template == tiny.tokenizer.chat_template
    assert opened.source.sha256 == hash_of(path) and opened.name == "x"


IDS = torch.tensor([5, 9, 300, 17, 44, 8, 201, 3])
BOUNDS = torch.tensor([0, 5, 8], dtype=torch.int32)


@torch.no_grad()
def _logits(model) -> torch.Tensor:
    return model.logits(model(IDS, BOUNDS)).float()


@pytest.mark.parametrize("family", FAMILIES)
def test_loaded_models_compute_the_same(tiny, tmp_path, family):
    """Trained, frozen, from GGUF and from a folder: the logits of the model that was written."""
    shape, weights = _made(family, tiny.tokenizer)
    model = shape.skeleton()
    for name, tensor in weights.items():
        model.put(name, tensor)
    expected = _logits(model)
    export_gguf(shape, weights, tiny.tokenizer, tmp_path / "x.gguf", "f32")
    export_safetensors(shape, weights, tiny.tokenizer, tmp_path / "x")
    for path in (tmp_path / "x.gguf", tmp_path / "x"):
        trained = Pretrained.open(path).load(trainable=True)
        assert trained.trainable().keys() == set(weights) - set(model.constants())
        assert all(p.dtype == torch.float32 for p in trained.parameters())
        frozen = Pretrained.open(path).load()
        assert not frozen.trainable()
        for loaded in (trained, frozen):
            torch.testing.assert_close(_logits(loaded), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_stay_as_they_are(tiny, tmp_path, family):
    """The file's own blocks give what their numbers give, and most are the mapped file's memory, not a copy."""
    shape, _ = _made(family, tiny.tokenizer)
    wide = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32}
    fields = shape.model_dump()
    if shape.QUERIES_ARE_WIDTH:
        wide["head_dim"] = wide["hidden_size"] // shape.num_attention_heads
    shape = type(shape)(**fields | {key: value for key, value in wide.items() if key in fields})
    weights = {name: p.detach() for name, p in shape.build(0).named_parameters()}
    opened = Pretrained.open(export_gguf(shape, weights, tiny.tokenizer, tmp_path / "x.gguf", "q8_0"))
    kept, dense = opened.load(quantize="as-is"), opened.load()
    torch.testing.assert_close(_logits(kept), _logits(dense), rtol=1e-5, atol=1e-5)
    frozen = {n: w for n, w in kept.weights().items() if isinstance(w, FrozenBlocks)}
    assert {n for n, s in opened.stored.items() if s.tensor.dtype == "Q8_0"} == frozen.keys()
    down = next(n for n in frozen if "down_proj" in n)
    assert frozen[down].raw.data_ptr() == opened.stored[down].place.bytes().ctypes.data


def test_nf4_keeps_the_layers_small(tiny, tmp_path):
    opened = Pretrained.open(export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "x.gguf", "f32"))
    small = opened.load(dtype=torch.bfloat16, quantize="nf4").weights()
    for name, weight in small.items():
        is_layer = name.startswith("model.layers.") and name.endswith("proj.weight")
        assert isinstance(weight, FrozenNf4) == is_layer
        if is_layer:
            assert weight.num_bytes < 0.54 * tiny.weights[name].numel()
            error = weight.dense(torch.float32) - tiny.weights[name]
            assert error.square().mean() < 0.02 * tiny.weights[name].square().mean()
    assert small["model.embed_tokens.weight"].dtype == torch.bfloat16


def test_loading_takes_little_more_than_what_is_loaded(tiny, tmp_path):
    """Most memory while loading, against what is kept, in a process of its own."""
    big = Llama(
        hidden_size=512, intermediate_size=4096, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=8,
        head_dim=64, vocab_size=tiny.tokenizer.vocab_size, max_position_embeddings=256,
    )  # fmt: skip
    weights = {name: torch.full(shape, 0.01) for name, shape in big.parameters().items()}
    path = export_gguf(big, weights, tiny.tokenizer, tmp_path / "big.gguf", "q8_0")
    code = """if True:
        import sys, torch
        from pathlib import Path
        from settle.model.pretrained import Pretrained
        def memory(what):
            status = Path("/proc/self/status").read_text()
            return int(status.split(what + ":")[1].split()[0]) * 1024
        Pretrained.open(sys.argv[2]).load()  # what is imported on the way counts for nobody
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        model = Pretrained.open(sys.argv[1]).load(dtype=torch.bfloat16)
        print(memory("VmHWM") - before, sum(w.num_bytes for w in model.weights().values() if hasattr(w, "num_bytes")))
    """
    little = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "little.gguf", "q8_0")
    done = subprocess.run([sys.executable, "-c", code, path, little], capture_output=True, text=True, check=True)
    most, kept = map(int, done.stdout.split())
    assert kept > 50e6 and most < 1.15 * kept


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
    """The same bytes called NVFP4."""
    path = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "x.gguf", "q8_0")
    raw = path.read_bytes()
    name = b"blk.0.ffn_up.weight"
    at = raw.index(name) + len(name) + 4 + 16
    assert struct.unpack_from("<I", raw, at) == (8,)
    # Q8_0 has 68 bytes for 64 values, NVFP4 36, so the tensors still lie apart
    path.write_bytes(raw[:at] + struct.pack("<I", 40) + raw[at + 4 :])
    with pytest.raises(FormatError, match="blk.0.ffn_up.weight is NVFP4, which is not read here"):
        Pretrained.open(path)
