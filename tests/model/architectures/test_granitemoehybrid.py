"""Granite 4.0, whose files join the feed-forward's gate and its other half: published models, adapters, weights."""

import json
import warnings

import pytest
import torch

from settle.base.errors import FormatError
from settle.formats.peft import export_peft
from settle.formats.safetensors import export_safetensors
from settle.model.adapters.dora import DoRA
from settle.model.adapters.lora import LoRA
from settle.model.families import of_hf_config
from settle.model.load_adapter import TrainedAdapter, attach, open_adapter
from settle.model.pretrained import Pretrained
from tests.model.architectures.cases import CASES, random_model

COMMON = {
    "model_type": "granitemoehybrid", "architectures": ["GraniteMoeHybridForCausalLM"], "attention_bias": False,
    "attention_dropout": 0.0, "bos_token_id": 100257, "eos_token_id": 100257, "pad_token_id": 100256,
    "hidden_act": "silu", "initializer_range": 0.1, "mamba_chunk_size": 256, "mamba_conv_bias": True,
    "mamba_d_conv": 4, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_proj_bias": False,
    "normalization_function": "rmsnorm", "num_experts_per_tok": 0, "num_local_experts": 0, "rms_norm_eps": 1e-05,
    "rope_scaling": None, "rope_theta": 10000, "router_aux_loss_coef": 0.01, "tie_word_embeddings": True,
    "vocab_size": 100352, "residual_multiplier": 0.22, "embedding_multiplier": 12, "init_method": "mup",
}  # fmt: skip
H_1B = COMMON | {
    "hidden_size": 1536, "intermediate_size": 4096, "shared_intermediate_size": 4096, "num_hidden_layers": 40,
    "num_attention_heads": 12, "num_key_value_heads": 4, "attention_multiplier": 0.0078125, "logits_scaling": 6,
    "mamba_d_head": 64, "mamba_d_state": 128, "mamba_n_heads": 48, "position_embedding_type": "nope",
    "max_position_embeddings": 131072,
    "layer_types": ["attention" if layer in (5, 15, 25, 35) else "mamba" for layer in range(40)],
}  # fmt: skip
MICRO = COMMON | {
    "hidden_size": 2560, "intermediate_size": 8192, "shared_intermediate_size": 8192, "num_hidden_layers": 40,
    "num_attention_heads": 40, "num_key_value_heads": 8, "attention_multiplier": 0.015625, "logits_scaling": 10,
    "mamba_d_head": 64, "mamba_d_state": 256, "mamba_n_heads": 128, "position_embedding_type": "rope",
    "rope_theta": 10000000, "max_position_embeddings": 131072, "layer_types": ["attention"] * 40,
}  # fmt: skip


@pytest.mark.parametrize(("config", "size"), [(H_1B, 1_461_538_368), (MICRO, 3_402_836_480)], ids=["h-1b", "micro"])
def test_published_models(config, size) -> None:
    """As the catalogue counts them; also as transformers 5 writes their config.json."""
    part = of_hf_config(config)
    assert part.num_parameters == size
    assert of_hf_config(json.loads(json.dumps(part.to_hf_config()))) == part
    kinds = {"mamba": "linear_attention", "attention": "full_attention"}
    newest = {"layer_types": [kinds[kind] for kind in config["layer_types"]]}
    assert of_hf_config(config | newest | {"time_step_limit": [0.0, {"__float__": "Infinity"}]}) == part


@pytest.fixture
def folder(tiny, tmp_path):
    part = CASES["granitemoehybrid-dense"].with_fields(vocab_size=tiny.tokenizer.vocab_size)
    weights = {name: p.detach() for name, p in random_model(part).named_parameters()}
    return export_safetensors(part, weights, tiny.tokenizer, tmp_path / "base")


def _adapted(opened, method):
    model = opened.load()
    method.apply(model)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.trainable().values():
            weight.add_(torch.randn(weight.shape, generator=random) * 0.1)
    return model


@pytest.mark.parametrize("method", [LoRA(rank=3, rslora=True), DoRA(rank=2)], ids=["lora", "dora"])
def test_peft_computes_the_same_with_its_adapter(folder, method, tmp_path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    opened = Pretrained.open(folder)
    model = _adapted(opened, method)
    trained = TrainedAdapter.of_model(model, method, "base", "")
    export_peft(opened.part, trained, tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for what is deprecated there
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter").eval()
    ids = torch.arange(20)
    with torch.no_grad():
        logits = theirs(ids[None], use_cache=False).logits[0]
        ours = model.logits(model(ids, torch.tensor([0, 20], dtype=torch.int32)))
        torch.testing.assert_close(ours, logits, atol=2e-4, rtol=1e-3)
        again = opened.load()
        attach(again, open_adapter(tmp_path / "adapter").apart(opened.part))
        back = again.logits(again(ids, torch.tensor([0, 20], dtype=torch.int32)))
    torch.testing.assert_close(back, ours, atol=2e-4, rtol=1e-3)


def test_half_of_a_joined_linear_is_no_adapter_for_peft(folder, tmp_path) -> None:
    opened, method = Pretrained.open(folder), LoRA(rank=2, targets=["shared_mlp.gate_proj"])
    trained = TrainedAdapter.of_model(_adapted(opened, method), method, "base", "")
    with pytest.raises(FormatError, match=r"PEFT adapts all of model.layers.0.shared_mlp.input_linear or nothing"):
        export_peft(opened.part, trained, tmp_path / "adapter")
