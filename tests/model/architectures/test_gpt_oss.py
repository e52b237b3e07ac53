"""gpt-oss beyond what every family is tested for: its published file, MXFP4 in both kinds of files, adapters."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from settle.base.errors import FormatError, UsageError
from settle.formats.gguf import export_gguf, read_gguf
from settle.formats.peft import export_peft
from settle.formats.safetensors import export_safetensors
from settle.infer.engine import Engine
from settle.infer.live_sampling import logprobs
from settle.jobs.tuning_stages import require_exportable
from settle.model.adapters.lora import LoRA
from settle.model.architectures.gpt_oss import GptOss
from settle.model.families import of_hf_config
from settle.model.load_adapter import TrainedAdapter, attach, open_adapter
from settle.model.pretrained import Pretrained
from settle.shrink.types.quantize_file import quantize_gguf
from tests.model.architectures.cases import random_model

GPT_OSS_20B = {
    "architectures": ["GptOssForCausalLM"], "attention_bias": True, "attention_dropout": 0.0, "eos_token_id": 200002,
    "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880, "initial_context_length": 4096,
    "initializer_range": 0.02, "intermediate_size": 2880, "max_position_embeddings": 131072, "model_type": "gpt_oss",
    "layer_types": ["sliding_attention", "full_attention"] * 12, "num_attention_heads": 64, "num_experts_per_tok": 4,
    "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32, "output_router_logits": False,
    "pad_token_id": 199999, "rms_norm_eps": 1e-05, "rope_theta": 150000, "router_aux_loss_coef": 0.9,
    "quantization_config": {
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens"],
        "quant_method": "mxfp4",
    },
    "rope_scaling": {
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
        "rope_type": "yarn", "truncate": False,
    },
    "sliding_window": 128, "swiglu_limit": 7.0, "tie_word_embeddings": False, "use_cache": True, "vocab_size": 201088,
}  # fmt: skip
IDS, BOUNDS = torch.arange(3, 33), torch.tensor([0, 30], dtype=torch.int32)


def test_the_published_model() -> None:
    """As its model card counts it: 20.9 B parameters, of which a token meets 3.6 B (arXiv:2508.10925, table 1)."""
    part = of_hf_config(GPT_OSS_20B)
    assert part.num_parameters == 20_914_757_184
    matrices = sum(map(part.active_numbers, range(part.num_hidden_layers)))
    assert math.isclose(matrices + part.vocab_size * part.hidden_size, 3.61e9, rel_tol=0.01)
    assert of_hf_config(part.to_hf_config()) == part
    bare = {key: value for key, value in GPT_OSS_20B.items() if key not in ("rope_scaling", "layer_types")}
    assert of_hf_config(bare).options() == part.options()  # transformers' defaults
    with pytest.raises(FormatError, match="swiglu_limit = 5.0 is not supported for gpt_oss"):
        of_hf_config(GPT_OSS_20B | {"swiglu_limit": 5.0})
    with pytest.raises(FormatError, match="quantization_config"):
        of_hf_config(GPT_OSS_20B | {"quantization_config": {"quant_method": "awq"}})


@pytest.fixture(scope="module")
def part(tiny) -> GptOss:
    """Rows of experts are whole blocks of 32."""
    return GptOss.TINY.with_fields(vocab_size=tiny.tokenizer.vocab_size, intermediate_size=64)


@pytest.fixture
def packed(tiny, part, tmp_path):
    """A folder with experts in MXFP4, as they are published, of random codes, and its tensors."""
    weights = {name: p.detach() for name, p in random_model(part).named_parameters()}
    folder = export_safetensors(part, weights, tiny.tokenizer, tmp_path / "packed", "f32")
    tensors = load_file(folder / "model.safetensors")
    random = np.random.default_rng(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = tensors.pop(name).shape
        shape = (experts, rows, columns // 32)
        tensors[f"{name}_blocks"] = random.integers(0, 256, (*shape, 16), dtype=np.uint8)
        tensors[f"{name}_scales"] = random.integers(122, 126, shape, dtype=np.uint8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = GPT_OSS_20B["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder, tensors


def test_mxfp4_of_a_folder_equals_transformers(packed, part) -> None:
    from transformers import AutoModelForCausalLM, Mxfp4Config
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    folder, tensors = packed
    opened = Pretrained.open(folder)
    assert opened.part == part and opened.kinds["MXFP4"] > 0
    live = opened.load(quantize="as-is").eval()
    for own, halves in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",))):
        stored = [
            torch.from_numpy(tensors[f"model.layers.1.mlp.experts.{own}_{kind}"]) for kind in ("blocks", "scales")
        ]
        numbers = convert_moe_packed_tensors(*stored, dtype=torch.float32)
        for number, half in enumerate(halves):
            name = f"model.layers.1.mlp.experts.4.{half}_proj.weight"
            wanted = numbers[4, :, number :: len(halves)].T
            torch.testing.assert_close(opened.read(name), wanted, rtol=0, atol=0)
            torch.testing.assert_close(live.weights()[name].dense(torch.float32), wanted, rtol=0, atol=0)
            assert live.weights()[name].num_bytes == wanted.numel() * 17 // 32
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=Mxfp4Config(dequantize=True), dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        logits = theirs.eval()(IDS[None]).logits[0]
        torch.testing.assert_close(live.logits(live(IDS, BOUNDS)), logits, atol=1e-4, rtol=1e-4)


def test_a_folder_without_scales_or_of_another_size(packed) -> None:
    folder, tensors = packed
    scales = "model.layers.0.mlp.experts.down_proj_scales"
    save_file({n: t for n, t in tensors.items() if n != scales}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(FormatError, match=f"it lacks {scales}"):
        Pretrained.open(folder)
    save_file(tensors | {scales: tensors[scales][:, 1:]}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(FormatError, match="down_proj_scales is U8 of the shape .* is needed"):
        Pretrained.open(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_local_experts": 10**9}))
    with pytest.raises(FormatError, match="its num_local_experts is 1000000000"):
        Pretrained.open(folder)


def test_what_llama_cpp_would_round_is_not_tuned(packed) -> None:
    opened = Pretrained.open(packed[0])
    require_exportable(opened)
    split = opened.part.with_fields(rope_scaling=opened.part.rope_scaling.model_copy(update={"truncate": False}))
    with pytest.raises(UsageError, match=r"packed, tuned, could not be exported through llama.cpp: .* \(truncate\)"):
        require_exportable(replace(opened, part=split))


def test_mxfp4_of_a_gguf_file_equals_llama_cpp(tiny, part, tmp_path) -> None:
    """Experts in MXFP4 and the rest in f32, as published files are; their blocks stay as they lie."""
    weights = {name: p.detach() for name, p in random_model(part).named_parameters()}
    plain = export_gguf(part, weights, tiny.tokenizer, tmp_path / "plain.gguf", "f32")
    experts = [name for name in read_gguf(plain).tensors if name.endswith("_exps.weight")]
    path = quantize_gguf(plain, tmp_path / "x.gguf", dict.fromkeys(experts, "MXFP4"))
    opened = Pretrained.open(path)
    assert set(opened.kinds) == {"F32", "MXFP4"}
    live = opened.load(quantize="as-is").eval()
    name = "model.layers.0.mlp.experts.3.down_proj.weight"
    stored = read_gguf(path).tensors["blk.0.ffn_down_exps.weight"]
    np.testing.assert_array_equal(live.weights()[name].dense(torch.float32).numpy(), stored.load()[3])
    ids, positions = IDS.tolist(), [0, 9, 29]
    with Engine(path, threads=1) as engine:
        for row, position in zip(logprobs(live, ids, positions), positions, strict=True):
            found = engine.next_token_logprobs(ids[: position + 1])
            # llama.cpp rounds what it multiplies blocks by to 8 bits
            torch.testing.assert_close(torch.tensor([found[i] for i in range(len(row))]), row, atol=0.15, rtol=0.01)


def _adapted(opened: Pretrained, method: LoRA):
    model = opened.load(quantize="as-is")
    method.apply(model)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.trainable().values():
            weight.add_(torch.randn(weight.shape, generator=random) * 0.1)
    return model


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_peft_computes_the_same_with_an_adapter_of_attention(packed, tmp_path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, Mxfp4Config

    folder, _ = packed
    opened, method = Pretrained.open(folder), LoRA(rank=3)
    model = _adapted(opened, method)
    trained = TrainedAdapter.of_model(model, method, "base", "")
    assert {module.rpartition(".")[2] for module in trained.modules} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    export_peft(opened.part, trained, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=Mxfp4Config(dequantize=True), dtype=torch.float32, attn_implementation="eager"
    )
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        logits = theirs(IDS[None]).logits[0]
        ours = model.logits(model(IDS, BOUNDS))
        torch.testing.assert_close(ours, logits, atol=2e-4, rtol=1e-3)
        again = opened.load()
        attach(again, open_adapter(tmp_path / "adapter").apart(opened.part))
        torch.testing.assert_close(again.logits(again(IDS, BOUNDS)), ours, atol=2e-4, rtol=1e-3)


def test_adapters_of_experts_are_not_written_for_peft(packed, tmp_path) -> None:
    opened = Pretrained.open(packed[0])
    method = LoRA(rank=2, targets=["down_proj"])
    trained = TrainedAdapter.of_model(_adapted(opened, method), method, "base", "")
    with pytest.raises(FormatError, match="PEFT knows no adapter of model.layers.0.mlp.experts.0.down_proj"):
        export_peft(opened.part, trained, tmp_path / "adapter")
