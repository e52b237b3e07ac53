"""Families with mixtures of experts: published models, routers, adapters of stacked experts, what is refused."""

import math

import numpy as np
import pytest
import torch

from settle.base.errors import FormatError, UsageError
from settle.formats.peft import export_peft
from settle.formats.safetensors import export_safetensors, write_safetensors
from settle.model.adapters.lora import LoRA
from settle.model.config import ROUTERS
from settle.model.families import of_hf_config
from settle.model.load_adapter import TrainedAdapter, attach, open_adapter
from settle.model.pretrained import Pretrained
from settle.shrink.prunable_model import require_dense
from tests.model.adapters.test_adapters import stir
from tests.model.architectures.cases import CASES, random_model

LFM2_8B_A1B = {
    "model_type": "lfm2_moe", "architectures": ["Lfm2MoeForCausalLM"], "bos_token_id": 1, "conv_L_cache": 3,
    "conv_bias": False, "eos_token_id": 7, "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 7168,
    "layer_types": ["full_attention" if layer in (2, 6, 10, 14, 18, 21) else "conv" for layer in range(24)],
    "max_position_embeddings": 128000, "moe_intermediate_size": 1792, "norm_eps": 1e-05, "norm_topk_prob": True,
    "num_attention_heads": 32, "num_dense_layers": 2, "num_experts": 32, "num_experts_per_tok": 4,
    "num_hidden_layers": 24, "num_key_value_heads": 8, "pad_token_id": 0, "rope_theta": 1000000.0,
    "routed_scaling_factor": 1.0, "tie_embedding": True, "use_cache": True, "use_expert_bias": True,
    "vocab_size": 65536,
}  # fmt: skip
GRANITE_1B_A400M = {
    "model_type": "granitemoe", "architectures": ["GraniteMoeForCausalLM"], "attention_bias": False,
    "attention_multiplier": 0.015625, "embedding_multiplier": 12.0, "hidden_act": "silu", "hidden_size": 1024,
    "intermediate_size": 512, "logits_scaling": 6.0, "max_position_embeddings": 131072, "num_attention_heads": 16,
    "num_experts_per_tok": 8, "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32,
    "output_router_logits": False, "residual_multiplier": 0.22, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 1500000.0, "router_aux_loss_coef": 0.0, "tie_word_embeddings": True, "vocab_size": 49155,
}  # fmt: skip
MIXTRAL_8X7B = {
    "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_act": "silu", "hidden_size": 4096,
    "intermediate_size": 14336, "max_position_embeddings": 32768, "num_attention_heads": 32, "num_experts_per_tok": 2,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8, "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": None, "tie_word_embeddings": False,
    "vocab_size": 32000,
}  # fmt: skip
QWEN1_5_MOE = {
    "model_type": "qwen2_moe", "architectures": ["Qwen2MoeForCausalLM"], "attention_dropout": 0.0,
    "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151643, "hidden_act": "silu",
    "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 5632, "max_position_embeddings": 8192,
    "max_window_layers": 21, "moe_intermediate_size": 1408, "norm_topk_prob": False, "num_attention_heads": 16,
    "num_experts": 60, "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 16,
    "output_router_logits": False, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 5632, "sliding_window": 32768, "tie_word_embeddings": False,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
QWEN3_CODER_NEXT = {
    "model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"], "attention_bias": False,
    "decoder_sparse_step": 1, "full_attention_interval": 4, "head_dim": 256, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 5120, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_num_key_heads": 16,
    "linear_num_value_heads": 32, "linear_value_head_dim": 128, "max_position_embeddings": 262144,
    "mlp_only_layers": [], "moe_intermediate_size": 512, "norm_topk_prob": True, "num_attention_heads": 16,
    "num_experts": 512, "num_experts_per_tok": 10, "num_hidden_layers": 48, "num_key_value_heads": 2,
    "partial_rotary_factor": 0.25, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 5000000,
    "shared_expert_intermediate_size": 512, "tie_word_embeddings": False, "vocab_size": 151936,
}  # fmt: skip
OLMOE_1B_7B = {
    "model_type": "olmoe", "architectures": ["OlmoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "clip_qkv": None, "eos_token_id": 50279, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 1024, "max_position_embeddings": 4096, "norm_topk_prob": False, "num_attention_heads": 16,
    "num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 16, "num_key_value_heads": 16,
    "output_router_logits": False, "pad_token_id": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "rope_theta": 10000.0, "router_aux_loss_coef": 0.01, "tie_word_embeddings": False, "vocab_size": 50304,
}  # fmt: skip
GRANITE_4_H_TINY = {
    "model_type": "granitemoehybrid", "architectures": ["GraniteMoeHybridForCausalLM"], "attention_bias": False,
    "attention_multiplier": 0.0078125, "embedding_multiplier": 12, "hidden_act": "silu", "hidden_size": 1536,
    "intermediate_size": 512, "logits_scaling": 6, "mamba_chunk_size": 256, "mamba_conv_bias": True, "mamba_d_conv": 4,
    "mamba_d_head": 64, "mamba_d_state": 128, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_n_heads": 48,
    "mamba_proj_bias": False, "max_position_embeddings": 131072, "num_attention_heads": 12, "num_experts_per_tok": 6,
    "num_hidden_layers": 40, "num_key_value_heads": 4, "num_local_experts": 64, "position_embedding_type": "nope",
    "residual_multiplier": 0.22, "rms_norm_eps": 1e-05, "shared_intermediate_size": 1024, "tie_word_embeddings": True,
    "vocab_size": 100352,
    "layer_types": ["attention" if layer in (5, 15, 25, 35) else "mamba" for layer in range(40)],
}  # fmt: skip
PUBLISHED = [
    (OLMOE_1B_7B, 6_919_161_856, 1_282_017_280),
    (GRANITE_4_H_TINY, 6_939_037_248, 1_465_470_528),
    (QWEN3_CODER_NEXT, 79_674_391_296, 3_874_929_408),
    (QWEN1_5_MOE, 14_315_784_192, 2_689_173_504),
    (LFM2_8B_A1B, 8_339_929_856, 1_557_740_288),
    (GRANITE_1B_A400M, 1_334_628_352, 428_658_688),
    (MIXTRAL_8X7B, 46_702_792_704, 12_879_925_248),
]
MIXTURES = sorted(name for name, part in CASES.items() if any(o.experts for o in part.options().layers))
HALVES = ("gate", "up", "down")
IDS, BOUNDS = torch.arange(3, 25), torch.tensor([0, 22], dtype=torch.int32)


@pytest.mark.parametrize(
    ("config", "size", "active"), PUBLISHED, ids=lambda value: value["model_type"] if isinstance(value, dict) else ""
)
def test_published_models(config: dict, size: int, active: int) -> None:
    """As the catalogue counts them, without biases of experts; active: those that a token meets."""
    part = of_hf_config(config)
    shapes = {n: shape for n, shape in part.parameters().items() if not n.endswith("expert_bias.weight")}
    assert sum(map(math.prod, shapes.values())) == size
    matrices = sum(map(part.active_numbers, range(part.num_hidden_layers)))
    others = sum(math.prod(s) for n, s in shapes.items() if len(s) == 1 or ".layers." not in n)
    assert matrices + others == active
    assert of_hf_config(part.to_hf_config()) == part


@pytest.mark.parametrize("name", MIXTURES)
def test_routers_are_adapted_only_where_they_are_named(name: str) -> None:
    part = CASES[name]
    routers = {part.hf_module(n) for n in (p.removesuffix(".weight") for p in part.parameters()) if n.endswith(ROUTERS)}
    only_named = {linear for linear, shape in part.linears().items() if shape.only_named}
    experts = {linear for linear in part.linears() if ".experts." in linear}
    assert only_named == (routers | experts if part.options().layers[-1].experts.only_named else routers)
    model = part.build(seed=0)
    assert only_named == {model.file_name(n) for n, linear in model.linears().items() if linear.only_named}
    assert only_named.isdisjoint(LoRA().targeted(part.linears()))
    assert set(LoRA(targets=sorted(routers)).apply(model)) == routers
    with pytest.raises(UsageError, match="mixture of experts are not pruned"):
        require_dense(part, "channels")


def _logits(part, adapter: TrainedAdapter) -> torch.Tensor:
    model = random_model(part)
    attach(model, adapter)
    with torch.no_grad():
        return model.logits(model(IDS, BOUNDS))


@pytest.mark.parametrize("name", ["granitemoe", "granitemoehybrid", "lfm2_moe"])
def test_adapters_of_stacked_experts_come_back(name: str, tmp_path) -> None:
    part, method = CASES[name], LoRA(rank=3, alpha=5.0)
    model = random_model(part)
    method.apply(model)
    stir(model)
    trained = TrainedAdapter.of_model(model, method, "base", "")
    back = open_adapter(export_peft(part, trained, tmp_path / "whole")).apart(part)
    assert set(back.modules) == set(trained.modules)
    torch.testing.assert_close(_logits(part, back), _logits(part, trained), atol=1e-4, rtol=1e-4)

    some = {key: tensor for key, tensor in trained.state.items() if ".experts.3." not in key}
    with pytest.raises(FormatError, match=r"PEFT adapts all of .*experts.gate_up_proj or nothing"):
        export_peft(part, TrainedAdapter(method, some), tmp_path / "some")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["granitemoe", "lfm2_moe", "qwen3_moe", "qwen3_5_moe_text"])
@pytest.mark.parametrize("targets", [["gate_up_proj", "down_proj"], ["experts.gate_up_proj"]], ids=["both", "one"])
def test_adapters_of_parameters_that_peft_trained(name: str, targets: list[str], tiny, tmp_path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    part = CASES[name]
    weights = {key: p.detach() for key, p in random_model(part).named_parameters()}
    folder = export_safetensors(part, weights, tiny.tokenizer, tmp_path / "base")
    settings = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj"], "target_parameters": targets}
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = get_peft_model(theirs, LoraConfig(**settings, rank_pattern={"q_proj": 2})).eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, weight in theirs.named_parameters():
            if "lora_B" in key:
                weight.copy_(torch.randn(weight.shape, generator=random) * 0.2)
        theirs.save_pretrained(tmp_path / "adapter")
        logits = theirs(IDS[None]).logits[0]
    adapter = open_adapter(tmp_path / "adapter").apart(part)
    torch.testing.assert_close(_logits(part, adapter), logits, atol=2e-4, rtol=1e-3)
    assert all(np.isfinite(tensor).all() for tensor in adapter.state.values())


def test_stacked_experts_of_a_file_are_those_apart(tiny, tmp_path) -> None:
    """As Qwen3.5 was published: (E, 2F, D) and (E, D, F)."""
    part = CASES["qwen3_5_moe_text"].with_fields(vocab_size=tiny.tokenizer.vocab_size)
    weights = {name: p.detach().numpy() for name, p in random_model(part).named_parameters()}
    folder = export_safetensors(part, weights, tiny.tokenizer, tmp_path / "base")
    experts = [f"mlp.experts.{i}." for i in range(part.num_experts)]
    for layer in range(part.num_hidden_layers):
        of = {half: [weights.pop(f"model.layers.{layer}.{e}{half}_proj.weight") for e in experts] for half in HALVES}
        module = f"model.layers.{layer}.mlp.experts"
        weights[f"{module}.gate_up_proj"] = np.concatenate([np.stack(of["gate"]), np.stack(of["up"])], 1)
        weights[f"{module}.down_proj"] = np.stack(of["down"])
    write_safetensors(folder / "model.safetensors", weights)
    read = Pretrained.open(folder).weights
    for name, p in random_model(part).named_parameters():
        torch.testing.assert_close(read[name], p.detach(), rtol=0, atol=0)
