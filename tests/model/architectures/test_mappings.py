"""Configurations and tensor names of every family, against transformers' own and real models' published sizes."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import settle
from settle.base.errors import FormatError
from settle.formats.gguf import export_gguf, read_gguf
from settle.model.architectures.llama import Llama
from settle.model.architectures.mistral import Mistral
from settle.model.architectures.phi3 import Phi3
from settle.model.families import families, of_gguf, of_hf_config
from tests.model.architectures.cases import BEYOND_GGUF, CASES, STAND_INS, as_transformers_knows_it

GEMMA = {"hidden_activation": "gelu_pytorch_tanh"}
SMOLLM2 = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    "rms_norm_eps": 1e-05, "rope_theta": 100000, "max_position_embeddings": 8192, "rope_scaling": None,
    "rope_interleaved": False, "is_llama_config": True,
}  # fmt: skip
LLAMA_3_2_1B = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
    "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "max_position_embeddings": 131072, "eos_token_id": [128001, 128008],
    "rope_scaling": {
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}  # fmt: skip
DEEPSEEK_CODER = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 24,
    "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 32256, "rms_norm_eps": 1e-06,
    "rope_theta": 100000, "max_position_embeddings": 16384, "rope_scaling": {"factor": 4.0, "type": "linear"},
}  # fmt: skip
MISTRAL = {
    "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "sliding_window": 4096,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "max_position_embeddings": 32768, "tie_word_embeddings": False,
}  # fmt: skip
QWEN2_5 = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "max_position_embeddings": 32768, "sliding_window": 32768,
    "max_window_layers": 21, "use_sliding_window": False,
}  # fmt: skip
QWEN3_MOE = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "num_experts": 128,
    "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "max_position_embeddings": 40960,
    "sliding_window": None, "max_window_layers": 48, "use_sliding_window": False, "router_aux_loss_coef": 0.001,
}  # fmt: skip
GEMMA2_2B = GEMMA | {
    "model_type": "gemma2", "hidden_act": "gelu_pytorch_tanh", "hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000,
    "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256,
    "sliding_window": 4096, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "max_position_embeddings": 8192,
}  # fmt: skip
GEMMA3_270M = GEMMA | {
    "model_type": "gemma3_text", "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144, "sliding_window": 512,
    "_sliding_window_pattern": 6, "attn_logit_softcapping": None, "final_logit_softcapping": None,
    "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
    "max_position_embeddings": 32768, "use_bidirectional_attention": False,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
}  # fmt: skip
PHI3_MINI = {
    "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064, "sliding_window": 262144,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096, "tie_word_embeddings": False,
    "rope_scaling": {"long_factor": [2.0] * 48, "short_factor": [1.05] * 48, "type": "longrope"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (SMOLLM2, 134_515_008),
        (LLAMA_3_2_1B, 1_235_814_400),
        (DEEPSEEK_CODER, 1_346_471_936),
        (MISTRAL, 7_241_732_096),
        (QWEN2_5, 494_032_768),
        (QWEN3_MOE, 30_532_122_624),
        (GEMMA2_2B, 2_614_341_888),
        (GEMMA3_270M, 268_098_176),
        (PHI3_MINI, 3_821_079_552),
    ],
    ids=lambda c: c["model_type"] if isinstance(c, dict) else "",
)
def test_published_models(config, size) -> None:
    """Their `config.json` is understood, and they have as many parameters as their pages say."""
    part = of_hf_config(config)
    assert part.num_parameters == size
    assert of_hf_config(part.to_hf_config()) == part


def _transformers(part):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = as_transformers_knows_it(part)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))


@pytest.mark.parametrize("name", CASES)
def test_transformers_has_the_same_names_and_settings(name, tmp_path) -> None:
    from transformers import AutoConfig

    part = CASES[name]
    _transformers(part).save_pretrained(tmp_path)
    from settle.formats.safetensors import read_safetensors

    theirs = {t.name: t.shape for t in part.unstack_experts(read_safetensors(tmp_path).tensors).values()}
    ours: dict[str, tuple[int, ...]] = {}
    for parameter, (rows, *rest) in part.parameters().items():
        name = part.hf_names()[parameter]
        ours[name] = (ours.get(name, (0,))[0] + rows, *rest)
    assert theirs == {name: part.hf_shape(name, shape) for name, shape in ours.items()}
    assert of_hf_config(part.to_hf_config()) == part
    if part.model_type in STAND_INS:
        return
    written = AutoConfig.from_pretrained(tmp_path).to_dict()  # in transformers' newest spelling
    again = of_hf_config(written)
    differing = {k for k, v in again.model_dump().items() if v != part.model_dump()[k]}
    assert differing <= {"bos_token_id", "eos_token_id", "layer_types", "sliding_window", "rope_scaling"}
    assert again.options() == part.options()


def test_the_page_names_every_family() -> None:
    page = (Path(settle.__file__).parents[1] / "docs" / "families.md").read_text(encoding="utf-8")
    named = {(hf, gguf) for hf, gguf in re.findall(r"^\| `(\w+)` \|.*?\| `([\w-]+)` \|", page, re.M)}
    assert named == {(f.model_type, f.gguf_architecture) for f in families().values()}


def test_every_family_is_tried() -> None:
    assert {part.model_type for part in CASES.values()} == set(families())


@pytest.mark.parametrize("name", [name for name in CASES if name not in BEYOND_GGUF])
def test_a_gguf_file_gives_the_model_back(name, tokenizer, tmp_path) -> None:
    part = CASES[name].model_copy(update={"vocab_size": tokenizer.vocab_size})
    random = torch.Generator().manual_seed(0)
    weights = {n: torch.randn(shape, generator=random) for n, shape in part.parameters().items()}
    file = read_gguf(export_gguf(part, weights, tokenizer, tmp_path / "x.gguf", "f32"))
    again = of_gguf(file.metadata, file.tensors)
    assert again.gguf_names() == part.gguf_names()
    if isinstance(part, Mistral) or part.gguf_metadata()[f"{part.gguf_family}.context_length"] < 64:
        assert again.max_position_embeddings == 8  # the window, within which llama.cpp computes the same
    else:
        for ours, theirs in zip(part.options().layers, again.options().layers, strict=True):
            torch.testing.assert_close(theirs.rope.frequencies, ours.rope.frequencies)
            is_folded = "falcon_h1" in name  # its multipliers are in the file's weights
            assert (is_folded or theirs.query_scale == ours.query_scale) and theirs.window == ours.window
        assert again.parameters() == part.parameters()
    seen: dict[str, int] = {}
    for parameter, tensor in part.gguf_names().items():
        stored = torch.from_numpy(file.tensors[tensor].load())
        if len(part.gguf_members()[tensor]) > 1:
            stored = stored[seen.setdefault(tensor, 0)]
            seen[tensor] += 1
        found = part.from_gguf_tensor(parameter, stored).view_as(weights[parameter])
        torch.testing.assert_close(found, weights[parameter])
    constants = set(file.tensors) - set(part.gguf_names().values())
    assert constants == set(part.gguf_constants())


@pytest.mark.parametrize("name", sorted(BEYOND_GGUF))
def test_what_llama_cpp_cannot_compute_is_not_exported(name) -> None:
    with pytest.raises(FormatError, match="llama.cpp"):
        CASES[name].gguf_metadata()


def test_what_is_not_done_is_named() -> None:
    config = Llama.TINY.to_hf_config()
    for change, says in [
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale_all_dim": 1.0}}, "mscale_all_dim"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_key_value_heads": 3}, "must divide"),
        ({"model_type": "falcon"}, "'falcon' is not known.*gemma3_text.*qwen2"),
    ]:
        with pytest.raises(FormatError, match=says):
            of_hf_config(config | change)
    del config["hidden_size"]
    with pytest.raises(FormatError, match="no hidden_size"):
        of_hf_config(config)
    with pytest.raises(FormatError, match="'rwkv7' is not known.*gemma3.*qwen3moe"):
        of_gguf({"general.architecture": "rwkv7"}, {})
    with pytest.raises(FormatError, match="turns texts into vectors"):
        of_gguf({"general.architecture": "bert"}, {})
    with pytest.raises(FormatError, match="one tensor for each expert"):
        of_gguf({"general.architecture": "llama", "llama.expert_count": 8}, {"blk.0.ffn_gate.0.weight": None})
    with pytest.raises(FormatError, match="no token_embd"):
        of_gguf({"general.architecture": "qwen2"}, {})


@pytest.mark.parametrize("name", ["llama", "cohere", "glm4", "gemma3_text", "qwen3_moe", "gpt_neox"])
def test_an_unknown_family_is_refused_with_the_nearest_and_what_differs(name) -> None:
    part = CASES[name]
    names, sizes = part.hf_names(), part.parameters()
    shapes = {names[parameter]: SimpleNamespace(shape=shape) for parameter, shape in sizes.items()}
    config = part.to_hf_config() | {"model_type": "new"}
    with pytest.raises(FormatError, match=f"nearest one is {name}, whose settings and tensors it has"):
        of_hf_config(config, shapes)
    norm = next(other for other in shapes if "norm" in other and ".0." in other)
    own = {key: value for key, value in shapes.items() if not key.endswith(norm.partition(".0.")[2])} | {
        "model.extra.weight": shapes[norm]
    }
    with pytest.raises(FormatError) as refused:
        of_hf_config(config | {"turns": 3}, own)
    for said in (f"nearest one is {name},", "its setting turns", "model.extra.weight", norm.replace(".0.", ".*.")):
        assert said in refused.value.what


def test_scaled_frequencies_equal_transformers() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for part in [of_hf_config(LLAMA_3_2_1B), of_hf_config(DEEPSEEK_CODER), of_hf_config(PHI3_MINI)]:
        config = _config(part)
        rope = part.options().layers[0].rope
        make = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]]
        theirs, factor = make(config, "cpu")
        torch.testing.assert_close(torch.tensor(rope.frequencies), theirs)
        assert rope.attention_factor == pytest.approx(factor)
        if isinstance(part, Phi3):
            theirs, _ = make(config, "cpu", seq_len=4097)
            torch.testing.assert_close(torch.tensor(rope.long_frequencies), theirs)
            assert rope.long_after == 4096


def _config(part):
    from transformers import AutoConfig

    config = part.to_hf_config()
    return AutoConfig.for_model(config.pop("model_type"), **config)
