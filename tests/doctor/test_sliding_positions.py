"""Layers that look back over a window are turned by the base of their file: a look reads a copy with another one."""

import pytest

from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer
from settle.doctor.checks.files.rope import _others, _rewritten, _slides
from settle.doctor.known_answers import PARAGRAPHS, PROSE
from settle.doctor.likelihood import Reader, text_reading
from settle.doctor.model_files import with_file
from settle.doctor.subject import ModelFile
from settle.formats.gguf import export_gguf, write_edited
from settle.infer.scorer import Overrides
from settle.library.resolve import resolve_gguf
from settle.model.architectures.gemma2 import Gemma2

BASE = "gemma2.rope.freq_base"


def nats(subject, overrides=None):
    with Reader(subject.model) as reader:
        readings = [text_reading(reader.engine, PARAGRAPHS[0], 64)]
        if overrides is None:
            return reader.nats(readings[0])
        with reader.overridden(overrides):
            return reader.nats(readings[0])


@pytest.fixture
def sliding(home, tmp_path):
    """Return a Gemma 2 whose attention looks at positions, in a file with a wrong base and one with the right one."""
    tokenizer = ByteBpeTokenizer.train(PROSE, 400, tmp_path / "tokenizer")
    part = Gemma2(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=32, vocab_size=tokenizer.vocab_size, max_position_embeddings=512, query_pre_attn_scalar=32,
        sliding_window=128, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id,
    )  # fmt: skip
    weights = {name: p.detach() for name, p in part.build(seed=0).named_parameters()}
    for name in weights:
        if "q_proj" in name or "v_proj" in name:
            weights[name] *= 30
    path = export_gguf(part, weights, tokenizer, tmp_path / "right.gguf", "f16")
    right = ModelFile(str(path), resolve_gguf(str(path)))
    return with_file(right, write_edited(right.model.weights, tmp_path / "wrong.gguf", {BASE: 10.0})), right


def test_a_copy_reaches_the_layers_that_an_override_does_not(sliding):
    wrong, right = sliding
    with Reader(wrong.model) as reader:
        metadata = reader.engine.metadata
        readings = [text_reading(reader.engine, PARAGRAPHS[0], 64)]
    assert _slides(wrong.model, metadata) and "base 10000" in _others(metadata)
    sound = nats(right)
    asked = nats(wrong, Overrides(rope_base=1e4))
    copied = _rewritten(wrong.model, _others(metadata), readings)["base 10000"]
    assert copied == pytest.approx(sound, abs=1e-5) != pytest.approx(nats(wrong), abs=1e-3)
    assert asked != pytest.approx(sound, abs=1e-3)
