"""Layers with recurrences: packed, token by token, as they are defined, and as a part of a multimodal model."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from settle.base.errors import ProofError
from settle.data.batches import Batch
from settle.formats.gguf import export_gguf
from settle.formats.safetensors import export_safetensors
from settle.model.architectures.qwen3_5_text import Qwen35Text
from settle.model.kv_cache import Growing
from settle.model.layers import chunked_scan, mixer
from settle.model.layers.mixer import Recurrence
from settle.model.layers.packed_sequences import Packing
from settle.model.pretrained import Pretrained
from settle.train.proof.definition import require_attention, require_causal
from tests.model.architectures.cases import CASES, random_model

LENGTHS = [9, 30, 1, 4]
RECURRENT = sorted(name for name, case in CASES.items() if any(x.recurrence for x in case.options().layers))


def _batch(vocab_size: int) -> Batch:
    ids = np.random.default_rng(0).integers(0, vocab_size, sum(LENGTHS))
    bounds = np.cumsum([0, *LENGTHS]).astype(np.int32)
    return Batch(ids, np.roll(ids, -1), bounds, np.concatenate([np.arange(n) for n in LENGTHS]))


def _exact(name: str):
    model = random_model(CASES[name]).double()
    model.compute_dtype = torch.float64
    return model


@pytest.mark.parametrize("name", RECURRENT)
def test_token_by_token_equals_the_whole(name: str) -> None:
    model = _exact(name)
    ids = torch.from_numpy(_batch(CASES[name].vocab_size).inputs).split(LENGTHS)
    grown = [torch.cat([text, text.flip(0)[:1].expand(5)]) for text in ids]
    with torch.no_grad():
        bounds = torch.tensor([0, *LENGTHS]).cumsum(0).int()
        growing = Growing(bounds, 5)
        model(torch.cat(ids), growing)
        for step in range(5):
            growing.read()
            tokens = torch.stack([text[len(text) - 5 + step] for text in grown])
            last = model(tokens, growing)
        for text, row in zip(grown, last, strict=True):
            alone = model(text, torch.tensor([0, len(text)], dtype=torch.int32))[-1]
            torch.testing.assert_close(row, alone, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrence_is_its_definition_and_stays_in_its_document(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 4 tokens, so that documents have several; then with the documents before it as a part of each."""
    monkeypatch.setattr(chunked_scan, "CHUNK", 4)
    model, batch = _exact(name), _batch(CASES[name].vocab_size)
    assert require_attention(model, batch).startswith(f"{len(model.layers)} layers")
    require_causal(model, batch, [])
    whole = Recurrence.whole
    one = Packing(torch.tensor([0, sum(LENGTHS)]))
    monkeypatch.setattr(Recurrence, "whole", lambda self, rows, packing: whole(self, rows, one))
    with pytest.raises(ProofError, match="recurrence crosses a document's border"):
        require_causal(model, batch, [])
    with pytest.raises(ProofError, match=r"recurrence `\w+` is .* off its definition"):
        require_attention(model, batch)


def test_a_convolution_of_the_last_tokens_across_a_border_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one leak that a token exchanged in the middle of a document would not show in a model of one such layer."""
    part = CASES["lfm2"].with_fields(num_hidden_layers=1, layer_types=("conv",))
    model, batch = random_model(part).double(), _batch(part.vocab_size)
    model.compute_dtype = torch.float64
    require_causal(model, batch, [])
    padded = mixer._padded

    def from_the_one_before(rows, bucket):
        own = padded(rows, bucket)
        before = torch.cat([own[:1, :1] * 0, padded(rows.roll(1, 0), bucket)[1:, :1]]) if bucket.segments > 1 else 0
        return own + before if bucket.segments == 1 else torch.cat([own[:, :1] + before, own[:, 1:]], 1)

    monkeypatch.setattr(mixer, "_padded", from_the_one_before)
    two = Batch(batch.inputs[:40], batch.targets[:40], np.array([0, 20, 40], np.int32), np.tile(np.arange(20), 2))
    with pytest.raises(ProofError, match="crosses a document's border"):
        require_causal(model, two, [])


def test_the_text_model_of_a_multimodal_one_is_loaded(tiny, tmp_path) -> None:
    part = Qwen35Text.TINY.with_fields(vocab_size=tiny.tokenizer.vocab_size)
    weights = {name: p.detach() for name, p in random_model(part).named_parameters()}
    folder = export_safetensors(part, weights, tiny.tokenizer, tmp_path / "x")
    tensors = load_file(folder / "model.safetensors")
    renamed = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in tensors.items()}
    more = {"model.visual.patch_embed.proj.weight": np.ones(3, np.float32), "mtp.fc.weight": np.ones(2, np.float32)}
    save_file(renamed | more, folder / "model.safetensors", {"format": "pt"})
    text = json.loads((folder / "config.json").read_text())
    config = {"model_type": "qwen3_5", "text_config": text, "vision_config": {"depth": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    opened = Pretrained.open(folder)
    assert list(opened.left_out) == ["mtp", "visual"] and opened.part == part
    for name, tensor in weights.items():
        torch.testing.assert_close(opened.read(name), tensor)


def test_blocks_that_the_order_of_heads_would_split_are_dense(tiny, tmp_path) -> None:
    """Heads of 16 numbers lie in another order in a GGUF file, whose blocks are 32 wide."""
    part = Qwen35Text.TINY.with_fields(vocab_size=tiny.tokenizer.vocab_size, linear_value_head_dim=16)
    part = part.with_fields(linear_key_head_dim=16)
    weights = {name: p.detach() for name, p in random_model(part).named_parameters()}
    opened = Pretrained.open(export_gguf(part, weights, tiny.tokenizer, tmp_path / "x.gguf", "q8_0"))
    ids, bounds = torch.arange(9), torch.tensor([0, 9], dtype=torch.int32)
    with torch.no_grad():
        kept, dense = (m(ids, bounds) for m in (opened.load(quantize="as-is"), opened.load()))
    torch.testing.assert_close(kept, dense, rtol=1e-5, atol=1e-5)
