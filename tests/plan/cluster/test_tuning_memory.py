"""Memory of tuning, against what trainers measured and worked out by hand."""

import pytest

from settle.library.model_shape import ModelShape
from settle.plan.memory_model import HALF, NF4, Tuning, adapter_parameters, base_bytes, training_shape, tuning_sizing

GIB = 2**30
LLAMA_3B = ModelShape(
    parameters=3212749824, active=3212749824, layers=28, width=3072, heads=24, kv_heads=8, head_dim=128, vocab=128256,
    context=131072, inner=8192, tied=True,
)  # fmt: skip
PHI = ModelShape(
    parameters=1418270720, active=1418270720, layers=24, width=2048, heads=32, kv_heads=32, head_dim=64, vocab=51200,
    context=2048, inner=8192,
)  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "tuning", "measured"),
    [  # torchtune's README (packed, and with activation checkpointing), peft's MetaMathQA, litgpt's resource table
        (LLAMA_3B, Tuning("full", rows=2, sequence=4096, recompute=False), 60.0),
        (LLAMA_3B, Tuning("full", rows=2, sequence=4096, chunked_loss=True, compiled=True), 24.9),
        (LLAMA_3B, Tuning("full", rows=4, sequence=768, recompute=False), 36.2),
        (LLAMA_3B, Tuning(rank=32, rows=4, sequence=768, recompute=False, attention_only=True), 20.76),
        (PHI, Tuning(rows=4, sequence=1044, rank=8, recompute=False, attention_only=True, adapter_bytes=2.0), 9.95),
    ],
)
def test_memory_is_within_a_tenth_of_what_was_measured(shape, tuning, measured):
    assert tuning_sizing(shape, tuning).tensors / GIB == pytest.approx(measured, rel=0.1)


def test_adapters_are_counted_by_the_matrices_that_they_adapt():
    w, kv = 3072, 1024
    attention = (w + w) + 2 * (w + kv) + (w + w)
    assert adapter_parameters(LLAMA_3B, Tuning(rank=8)) == 8 * 28 * (attention + 3 * (w + 8192))
    assert adapter_parameters(LLAMA_3B, Tuning(rank=8, attention_only=True)) == 8 * 28 * (w + w + w + kv)


def test_a_quantized_base_keeps_its_tables_whole():
    table = LLAMA_3B.table
    plain = base_bytes(LLAMA_3B, Tuning(bits=4, upcast=False))
    assert plain == pytest.approx(HALF * table + NF4 * (LLAMA_3B.parameters - table))
    assert base_bytes(LLAMA_3B, Tuning(bits=4)) == pytest.approx(plain + HALF * table)
    assert base_bytes(LLAMA_3B, Tuning(bits=16)) == HALF * LLAMA_3B.parameters


def test_shards_checkpoints_and_chunks_take_less():
    whole = tuning_sizing(LLAMA_3B, Tuning("full", rows=2, sequence=4096, recompute=False))
    again = tuning_sizing(LLAMA_3B, Tuning("full", rows=2, sequence=4096))
    assert again.activations == 28 * HALF * 3072 * 8192 and again.total < whole.total
    assert tuning_sizing(LLAMA_3B, Tuning(chunked_loss=True)).logits < tuning_sizing(LLAMA_3B, Tuning()).logits / 4
    assert tuning_sizing(LLAMA_3B, Tuning("full", devices=8)).optimizer < again.optimizer
    eight_bit = tuning_sizing(LLAMA_3B, Tuning("full", optimizer="adamw-8bit"))
    assert eight_bit.optimizer == 2.0 * LLAMA_3B.parameters


def test_whether_a_feed_forward_is_gated_follows_from_the_weights():
    assert training_shape(LLAMA_3B).ffn_matrices == 3 and training_shape(PHI).ffn_matrices == 2
    assert training_shape(LLAMA_3B).parameters == pytest.approx(LLAMA_3B.parameters, rel=0.01)
    hidden = LLAMA_3B.model_copy(update={"inner": 0})
    assert training_shape(hidden).ffn == pytest.approx(8192, rel=0.01)


def test_recomputing_keeps_what_enters_each_layer_and_works_on_one():
    kept = tuning_sizing(LLAMA_3B, Tuning("full", rows=2, sequence=1024, recompute=False))
    again = tuning_sizing(LLAMA_3B, Tuning("full", rows=2, sequence=1024, recompute=True))
    assert kept.working == 0 and again.working == pytest.approx(kept.activations / LLAMA_3B.layers)
    assert again.activations == LLAMA_3B.layers * HALF * LLAMA_3B.width * 2048
