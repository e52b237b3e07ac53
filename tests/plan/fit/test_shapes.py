"""What a model's numbers say of its memory: worked out by hand for each kind of attention."""

import pytest

from settle.base.errors import FormatError, UsageError
from settle.library.catalogue import catalogue_file, find_known, known_model
from settle.library.model_shape import ModelShape, shape_from_config
from settle.plan.fit.weight_types import read_bytes, weight_bytes, weight_type

GIB = 2**30
LLAMA = {
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096,
    "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072,
}  # fmt: skip


def test_grouped_heads_keep_two_numbers_a_head_and_layer():
    shape = shape_from_config(LLAMA, 8_030_261_248)
    assert shape.kv_bytes(8192) == 8192 * 32 * 2 * 8 * 128 * 2  # 1 GiB
    assert shape.kv_bytes(8192, 1.0625) == pytest.approx(shape.kv_bytes(8192) * 1.0625 / 2)


def test_a_window_keeps_its_tokens_only():
    config = LLAMA | {"model_type": "gemma3", "sliding_window": 1024}  # 5 windows, 1 whole: 27 of 32
    shape = shape_from_config(config, 8_030_261_248)
    assert (shape.window, shape.window_layers) == (1024, 27)
    per_token = 2 * 8 * 128 * 2
    assert shape.kv_bytes(32768) == (5 * 32768 + 27 * 1024) * per_token
    assert shape.kv_bytes(512) == 32 * 512 * per_token


def test_latent_attention_keeps_one_vector_for_all_heads():
    shape = shape_from_config(LLAMA | {"kv_lora_rank": 512, "qk_rope_head_dim": 64}, 8_030_261_248)
    assert shape.kv_bytes(1000) == 1000 * 32 * 576 * 2


def test_linear_layers_keep_a_state_whatever_the_context():
    config = LLAMA | {"full_attention_interval": 4, "linear_num_value_heads": 32, "linear_key_head_dim": 128}
    shape = shape_from_config(config, 8_030_261_248)
    assert (shape.linear_layers, shape.state_elements) == (24, 32 * 128 * 128)
    assert shape.kv_bytes(4096) - shape.kv_bytes(0) == 4096 * 8 * 2 * 8 * 128 * 2
    listed = LLAMA | {"layer_types": ["linear_attention"] * 24 + ["full_attention"] * 8}
    assert shape_from_config(listed, 8_030_261_248).linear_layers == 24


def test_the_published_cache_of_a_model_with_two_kinds_of_heads():
    """Gemma 4 31B at its whole context: 20.78 GiB, where formulas that know one kind of head are off by 11 times."""
    assert known_model("gemma-4-31b").shape.kv_bytes(262144) / GIB == pytest.approx(20.78, rel=0.005)


@pytest.mark.parametrize(
    ("name", "type_name", "gib"),
    [
        ("llama-2-7b", "q4_0", 3.56), ("llama-2-7b", "q8_0", 6.67), ("llama-2-7b", "f16", 12.55),
        ("llama-3.1-8b", "q4_k_m", 4.58), ("llama-3.1-70b", "q4_k_m", 39.59), ("gpt-oss-20b", "mxfp4", 11.27),
        ("qwen3-30b-a3b", "q4_k_m", 17.28),
    ],
)  # fmt: skip
def test_published_files_have_the_size_that_is_told(name, type_name, gib):
    assert weight_bytes(known_model(name).shape, type_name) / GIB == pytest.approx(gib, rel=0.02)


def test_a_mixture_reads_the_experts_that_are_chosen():
    config = LLAMA | {"num_experts": 64, "num_experts_per_tok": 4, "moe_intermediate_size": 1024, "model_type": "x"}
    whole = 40_000_000_000
    shape = shape_from_config(config, whole)
    assert shape.active == whole - 3 * 4096 * 1024 * 32 * 60
    assert shape.beside_experts == shape.active - 3 * 4096 * 1024 * 32 * 4
    assert read_bytes(shape, "f16") == 2 * (shape.active - shape.table)


def test_no_mixture_of_the_catalogue_counts_as_dense():
    """Its numbers without experts explain its parameters but for state spaces, or it says how many experts it has."""
    for model in catalogue_file().known:
        shape = model.shape
        attention = shape.width * shape.head_dim * 2 * (shape.heads + shape.kv_heads)
        layer = 3 * shape.width * shape.inner + attention
        dense = shape.layers * layer + shape.table * (1 if shape.tied else 2)
        assert shape.is_mixture or not shape.inner or shape.parameters < 2.5 * dense, model.name


@pytest.mark.parametrize(
    "keys",
    [
        {"moe_num_experts": 64, "moe_k": 6, "moe_intermediate_size": 1536, "moe_layer_start_index": 1},  # ERNIE 4.5
        {"num_experts": 64, "moe_topk": [6] * 28, "moe_intermediate_size": [1536] * 28, "first_k_dense_replace": 1},
        {"n_routed_experts": 64, "num_experts_per_tok": 6, "moe_intermediate_size": 1536, "first_k_dense_replace": 1},
    ],
)
def test_experts_are_read_however_a_family_calls_them(keys):
    config = {"num_hidden_layers": 28, "num_attention_heads": 20, "num_key_value_heads": 4, "hidden_size": 2560,
              "head_dim": 128, "intermediate_size": 12288, "vocab_size": 103424}  # fmt: skip
    shape = shape_from_config(config | keys, 21_825_437_888)
    assert (shape.experts, shape.experts_used, shape.inner) == (64, 6, 1536)
    assert shape.active == known_model("ernie-4.5-21b-a3b").shape.active == pytest.approx(3e9, rel=0.15)


def test_a_width_that_k_types_cannot_take_is_stored_finer():
    narrow = known_model("smollm2-135m").shape
    assert narrow.width % 256
    assert weight_bytes(narrow, "q4_k_m") > 1.15 * narrow.parameters * 4.8 / 8


def test_contradictory_numbers_are_refused():
    with pytest.raises(FormatError, match="embedding alone"):
        shape_from_config(LLAMA, 1_000_000)
    with pytest.raises(FormatError, match="num_hidden_layers"):
        shape_from_config({}, 1)
    with pytest.raises(ValueError, match="experts used"):
        ModelShape(parameters=9, active=9, layers=1, width=1, heads=1, kv_heads=1, head_dim=1, vocab=1, context=1,
                   experts=2, experts_used=3)  # fmt: skip
    with pytest.raises(UsageError, match="did you mean"):
        weight_type("q4_k_n")


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf", "llama-3.1-8b"), ("llama3.1:8b", "llama-3.1-8b"),
        ("hf.co/unsloth/Mistral-Small-3.2-24B-Instruct-2506-GGUF:Q4_K_M", "mistral-small-3.2-24b"),
        ("gemma4:31b-mlx", "gemma-4-31b"), ("Qwen/Qwen3-30B-A3B", "qwen3-30b-a3b"),
        ("Qwen_Qwen3.5-9B-Q4_K_M.gguf", "qwen3.5-9b"), ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m"),
    ],
)  # fmt: skip
def test_a_model_is_found_however_a_store_spells_it(name, known):
    found = find_known(name)
    assert found and found.name == known


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(UsageError, match="llama-3.1-8b"):
        known_model("lama-3.1-8b")
    assert find_known("toaster-9b") is None
