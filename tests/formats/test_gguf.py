"""What `export_gguf` writes, read by llama.cpp's own reader and by ours."""

import resource

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from settle.base.errors import FormatError, ResourceError
from settle.formats.gguf import export_gguf, read_gguf, rows

CARD = {
    "name": "tiny",
    "description": "a test",
    "tags": ["a", "b"],
    "loss": 1.5,
    "steps": 7,
    "base": True,
    "none": None,
}


@pytest.mark.parametrize(
    ("dtype", "error"),
    [("f32", 0.0), ("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 2**-7), ("q5_1", 2**-5), ("q5_0", 2**-4), ("q4_1", 2**-4),
     ("q4_0", 2**-3)],
)  # fmt: skip
def test_both_readers_agree(tiny, tmp_path, dtype, error):
    path = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "tiny.gguf", dtype, CARD)
    ours, theirs = read_gguf(path), GGUFReader(path)
    assert {t.name: tuple(int(d) for d in reversed(t.shape)) for t in theirs.tensors} == {
        t.name: t.shape for t in ours.tensors.values()
    }
    assert {t.name: t.tensor_type.name for t in theirs.tensors} == {t.name: t.dtype for t in ours.tensors.values()}
    names = tiny.part.gguf_names()
    for name, tensor in tiny.weights.items():
        if "q_proj" in name or "k_proj" in name:
            continue
        loaded, expected = ours.tensors[names[name]].load(), tensor.numpy()
        assert np.abs(loaded - expected).max() <= error * np.abs(expected).max()
        if loaded.ndim == 2:
            some = [loaded.shape[0] - 1, 0, 3]
            assert np.array_equal(rows(ours.tensors[names[name]], some), loaded[some])
    keys = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert keys == ours.metadata
    assert ours.metadata["general.name"] == "tiny" and ours.metadata["settle.loss"] == 1.5
    assert ours.metadata["settle.base"] is True and "settle.none" not in ours.metadata


def test_queries_and_keys_are_interleaved(tiny, tmp_path):
    """Row i of a head's first half becomes row 2i, row i of its second half row 2i + 1."""
    path = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "tiny.gguf", "f32")
    written = read_gguf(path).tensors["blk.0.attn_q.weight"].load().reshape(4, 16, -1)
    query = tiny.weights["model.layers.0.self_attn.q_proj.weight"].numpy().reshape(4, 16, -1)
    np.testing.assert_array_equal(written[:, 0::2], query[:, :8])
    np.testing.assert_array_equal(written[:, 1::2], query[:, 8:])


def test_rows_that_blocks_do_not_divide(tiny, tmp_path):
    """A width of 48 has no whole number of Q8_0 blocks: that tensor is f16."""
    from settle.model.architectures.llama import Llama

    shape = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 16}
    part = Llama(**shape, vocab_size=tiny.tokenizer.vocab_size, tie_word_embeddings=True)
    weights = {name: p.detach() for name, p in part.build(0).named_parameters()}
    path = export_gguf(part, weights, tiny.tokenizer, tmp_path / "x.gguf", "q8_0")
    types = {t.name: t.dtype for t in read_gguf(path).tensors.values()}
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["blk.0.ffn_up.weight"] == types["token_embd.weight"] == "Q8_0"
    assert types["output_norm.weight"] == "F32"
    assert "output.weight" not in types


def test_padded_vocabulary(tiny, tmp_path):
    part = tiny.part.model_copy(update={"vocab_size": 520})
    weights = {name: p.detach() for name, p in part.build(0).named_parameters()}
    metadata = read_gguf(export_gguf(part, weights, tiny.tokenizer, tmp_path / "x.gguf")).metadata
    assert metadata["tokenizer.ggml.tokens"][-1] == "[PAD519]"
    assert metadata["tokenizer.ggml.token_type"][-8:] == [5] * 8


@pytest.mark.parametrize(
    ("value", "dtype", "says"),
    [(float("nan"), "f32", "NaN or infinity"), (float("inf"), "bf16", "NaN or infinity"), (1e6, "f16", "--dtype bf16")],
)
def test_values_that_cannot_be_written(tiny, tmp_path, value, dtype, says):
    name = "model.layers.0.mlp.up_proj.weight"
    weights = tiny.weights | {name: torch.full_like(tiny.weights[name], value)}
    with pytest.raises(FormatError, match=f"{name}.*{says}"):
        export_gguf(tiny.part, weights, tiny.tokenizer, tmp_path / "tiny.gguf", dtype)
    assert not list(tmp_path.iterdir())


def test_missing_tensor(tiny, tmp_path):
    weights = {n: t for n, t in tiny.weights.items() if n != "model.norm.weight"}
    with pytest.raises(FormatError, match="disagree about model.norm.weight"):
        export_gguf(tiny.part, weights, tiny.tokenizer, tmp_path / "tiny.gguf")


def test_disk_fills_up(tiny, tmp_path):
    """The system refuses to write on in the middle of a tensor: the old file stays, nothing else is left."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ResourceError, match="no room for tiny.gguf"):
            export_gguf(tiny.part, tiny.weights, tiny.tokenizer, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.gguf"]
