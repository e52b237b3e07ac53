"""What only Gemma 3n and 4 have: keys and values of other layers, inputs of the layers' own, several streams."""

import json

import pytest
import torch

from settle.base.errors import FormatError, UsageError
from settle.base.event_log import Events
from settle.base.events import Event
from settle.formats.safetensors import read_safetensors
from settle.library.catalogue import catalogue_file
from settle.library.pretrained import open_pretrained
from settle.model.architectures.gemma4_text import Gemma4Text
from settle.model.families import family_of, of_hf_config
from settle.model.kv_cache import Growing
from settle.model.pretrained import Pretrained
from settle.shrink.prunable_model import PrunableModel
from settle.shrink.pruners.vocabulary import cut_subject
from tests.model.architectures.cases import CASES, random_model

E2B = {
    "model_type": "gemma4_text", "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 35,
    "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "global_head_dim": 512, "vocab_size": 262144,
    "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7, "num_kv_shared_layers": 20,
    "use_double_wide_mlp": True, "hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": 262144,
    "final_logit_softcapping": 30.0, "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 512,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}  # fmt: skip
E2B_3N = {
    "model_type": "gemma3n_text", "hidden_size": 2048, "intermediate_size": [8192] * 30, "num_hidden_layers": 30,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 262400,
    "vocab_size_per_layer_input": 262144, "hidden_size_per_layer_input": 256, "num_kv_shared_layers": 10,
    "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 6, "final_logit_softcapping": 30.0,
    "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 20, "laurel_rank": 64, "altup_num_inputs": 4,
    "altup_active_idx": 0, "altup_coef_clip": 120.0, "altup_correct_scale": True, "rope_scaling": None,
    "rope_theta": 1e6, "rope_local_base_freq": 10000.0, "hidden_activation": "gelu_pytorch_tanh",
}  # fmt: skip


def test_a_model_of_the_size_of_the_older_e2b() -> None:
    """Also as its class has it without most keys, and with ids behind the table of the layers' inputs."""
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    with torch.device("meta"):
        theirs = Gemma3nForCausalLM(Gemma3nTextConfig(**E2B_3N))
    part = of_hf_config(E2B_3N)
    assert part.num_parameters == sum(p.numel() for p in theirs.parameters())
    metadata = part.gguf_metadata()
    assert (metadata["gemma3n.attention.shared_kv_layers"], metadata["gemma3n.vocab_size"]) == (10, 262400)
    name = "model.embed_tokens_per_layer.weight"
    assert part.gguf_shape(name, part.parameters()[name]) == (262400, 30 * 256)
    rows = torch.arange(262144).unsqueeze(1)
    assert part.to_gguf(name, rows)[262142:262146].flatten().tolist() == [262142, 262143, 0, 0]
    assert part.shortened(8).options().layers[-1].borrows == "full_attention"
    sizes = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    assert of_hf_config({key: E2B_3N[key] for key in sizes} | {"num_kv_shared_layers": 10}) == part
    for change, says in [
        ({"intermediate_size": [8192] * 29 + [4096]}, "intermediate_size is"),
        ({"activation_sparsity_pattern": [0.0] * 29 + [0.5]}, "activation_sparsity_pattern is"),
        ({"altup_correct_scale": False}, "altup_correct_scale"),
    ]:
        with pytest.raises(FormatError, match=says):
            of_hf_config(E2B_3N | change)
    with pytest.raises(FormatError, match="residual streams of 4, this model has 3"):
        of_hf_config(E2B_3N | {"altup_num_inputs": 3}).gguf_metadata()


def test_a_model_of_the_size_of_e2b() -> None:
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    with torch.device("meta"):
        theirs = Gemma4ForCausalLM(Gemma4TextConfig(**E2B))
    part = of_hf_config(E2B)
    assert part.num_parameters == sum(p.numel() for p in theirs.parameters()) + 35  # a number of each layer
    assert part.gguf_metadata()["gemma4.feed_forward_length"] == [6144] * 15 + [12288] * 20
    part.shortened(3), part.shortened(8)


@pytest.mark.parametrize("name", ["gemma4_text", "gemma3n_text-lenders"])
def test_token_by_token_equals_at_once(name) -> None:
    """Beyond the windows of 8; the layers that borrow see what was read before."""
    model = random_model(CASES[name])
    texts = [torch.arange(5, 31) % 64, torch.arange(40, 61)]
    bounds = torch.tensor([0, *map(len, texts)]).cumsum(0).int()
    with torch.no_grad():
        whole = model(torch.cat(texts), bounds).split([26, 21])
        growing = Growing(torch.tensor([0, 16, 27]).int(), 10)
        first = model(torch.cat([texts[0][:16], texts[1][:11]]), growing)
        torch.testing.assert_close(first[:16], whole[0][:16], atol=1e-4, rtol=1e-4)
        for step in range(10):
            growing.read()
            new = model(torch.stack([texts[0][16 + step], texts[1][11 + step]]), growing)
            wanted = torch.stack([whole[0][16 + step], whole[1][11 + step]])
            torch.testing.assert_close(new, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["gemma4_text", "gemma3n_text-lenders"])
def test_computing_again_gives_the_same_gradients_after_another_pass(name) -> None:
    """A pass of the same packed batch with other weights in between: what layers lend is of one pass."""
    from settle.model.layers.packed_sequences import Packing

    gradients = []
    for recompute in (0, 1):
        model, other = random_model(CASES[name]), CASES[name].build(seed=1)
        model.recompute = recompute
        ids, packing = torch.arange(40) % 64, Packing(torch.tensor([0, 25, 40]).int())
        out = model(ids, packing)
        other(ids, packing)
        out.sin().sum().backward()
        gradients.append({name: p.grad for name, p in model.trainable().items()})
    assert "model.layers.1.self_attn.k_proj.weight" in gradients[0]
    assert not any("layer_scalar" in name for name in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_text_model_in_a_multimodal_checkpoint(tmp_path, tokenizer) -> None:
    """With keys of layers that borrow, as published files have them; what is left out has a name."""
    from safetensors.torch import save_file

    part = Gemma4Text.TINY.with_fields(vocab_size=tokenizer.vocab_size)
    model = random_model(part)
    names = part.hf_names()
    text = {names[n].replace("model.", "model.language_model.", 1): p.detach() for n, p in model.named_parameters()}
    unread = {"model.language_model.layers.4.self_attn.k_proj.weight": torch.zeros(32, 32)}
    others = {"model.vision_tower.x.weight": torch.zeros(2), "model.embed_audio.y.weight": torch.zeros(2)}
    save_file({n: t.contiguous() for n, t in (text | unread | others).items()}, tmp_path / "model.safetensors")
    config = {"model_type": "gemma4", "text_config": part.to_hf_config(), "vision_config": {}, "eos_token_id": [1]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer.save(tmp_path)
    assert len(read_safetensors(tmp_path).tensors) == len(text) + 3
    opened = Pretrained.open(tmp_path)
    assert opened.left_out == {"embed_audio": 8, "vision_tower": 8}
    said: list[Event] = []
    open_pretrained(tmp_path, Events(None, [said.append]))
    assert ["left out: embed audio (0.0 MB), vision tower (0.0 MB)" in event.text for event in said] == [True]
    ids, bounds = torch.arange(20), torch.tensor([0, 20]).int()
    torch.testing.assert_close(opened.load()(ids, bounds), model(ids, bounds))
    assert not any("layer_scalar" in name for name in opened.load(trainable=True).trainable())


def test_a_multimodal_checkpoint_leads_to_its_text_model() -> None:
    """Also where its text_config names no model_type and leaves sizes to the class, as the first Gemma 3 do."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    named = {name: f"{name}_text" for name in ("gemma4", "gemma3n", "gemma3", "qwen3_5")}
    assert named.keys() - {"gemma3n"} <= {known.family for known in catalogue_file().known}
    for whole, text in named.items():
        assert family_of(whole) is family_of(text) is type(CASES[text])
    assert family_of("bert") is None
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    part = of_hf_config({"model_type": "gemma3", "text_config": text, "vision_config": {}})
    with torch.device("meta"):
        theirs = Gemma3ForCausalLM(Gemma3TextConfig(**text))
    assert part.num_parameters == sum(p.numel() for p in theirs.parameters())


def test_what_is_not_done_is_named() -> None:
    for change, says in [
        ({"enable_moe_block": True}, "enable_moe_block"),
        ({"attention_k_eq_v": True}, "attention_k_eq_v"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
        ({"vocab_size_per_layer_input": 10}, "vocab_size_per_layer_input is 10"),
        ({"num_kv_shared_layers": 34}, "num_kv_shared_layers"),
    ]:
        with pytest.raises(FormatError, match=says):
            of_hf_config(E2B | change)
    model = CASES["gemma4_text"].build(seed=0)
    with pytest.raises(UsageError, match="not taken one by one"):
        model.layer(4, model.embed(torch.arange(3)), None)


def test_a_smaller_vocabulary_takes_the_layers_own_inputs_along(tokenizer) -> None:
    part = Gemma4Text.TINY.with_fields(vocab_size=tokenizer.vocab_size)
    whole = PrunableModel.of_decoder(part, random_model(part), tokenizer)
    kept = [*range(0, tokenizer.vocab_size, 2)]
    ids, bounds = torch.arange(20), torch.tensor([0, 20]).int()
    cut = cut_subject(whole, kept).build(trainable=False)
    torch.testing.assert_close(cut(ids, bounds), whole.build(trainable=False)(torch.tensor(kept)[ids], bounds))
