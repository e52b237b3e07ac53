"""Exports that are broken on purpose, in the ways that exports have been broken: each is refused, by its cause."""

import copy
import dataclasses

import pytest
import torch

from settle.base.errors import GateError
from settle.base.registry import part as family
from settle.evaluate.gate.behaviour import Effort
from settle.evaluate.gate.diagnose import Origin
from settle.evaluate.gate.export import ExportedAdapter, ExportedModel, export_adapter, export_model
from settle.evaluate.gate.gate import Merge, Reference, require, run_gate
from settle.formats.gguf import Gguf, export_gguf, read_gguf, write_edited
from settle.formats.lora_gguf import LoraGguf, export_lora
from settle.model.adapters.lora import LoRA
from settle.model.architectures.llama import Llama
from settle.model.pretrained import Pretrained
from tests.trained import adapter, merged

EFFORT = dataclasses.replace(Effort(), num_texts=20, num_logprobs=1 << 15)
LLAMA3 = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def with_(tokenizer, **changes):
    changed = copy.copy(tokenizer)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def adapted(tiny, lora):
    model = copy.deepcopy(tiny.model)
    model.load_state_dict(merged(tiny.weights, lora))
    return model


def of_family(tiny, name, **changes):
    """(part, model, weights) of a small model of another family, over the tokenizer that there is."""
    part = family("model/architectures", name).TINY
    part = type(part)(**(part.model_dump() | {"vocab_size": tiny.tokenizer.vocab_size} | changes))
    model = part.build(0).eval()
    return part, model, {n: p.detach() for n, p in model.named_parameters()}


def refused(says, model, origin, tokenizer, path, tiny, **more):
    figures = run_gate(Reference(model, tokenizer, tiny.held_out), path, "f16", EFFORT, origin=origin, **more)
    assert not figures["passed"]
    with pytest.raises(GateError, match=says):
        require(figures, path)
    return figures


def test_wrong_template(tiny, tmp_path):
    other = with_(tiny.tokenizer, chat_template=tiny.tokenizer.chat_template.replace("<|im_end|>", "</s>"))
    path = export_gguf(tiny.part, tiny.weights, other, tmp_path / "x.gguf")
    origin = Origin(tiny.part, tiny.weights)
    refused(
        "rendered prompts differ .* the chat template is another one", tiny.model, origin, tiny.tokenizer, path, tiny
    )


LOOP = "{% for message in messages %}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (LOOP, "{% for message in messages[:3] %}"),
        (LOOP, "{% for message in messages[-7:] %}"),
        ("message['content']", "message['content'][:200]"),
        (LOOP, "{% for message in messages if message['role'] != 'tool' %}"),  # no conversation here has one
    ],
)
def test_a_template_that_differs_in_long_conversations_alone(tiny, tmp_path, old, new):
    path = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "x.gguf")
    template = tiny.tokenizer.chat_template
    text = template.replace("{%-", "{%").replace("-%}", "%}") if old not in template else template
    assert old in text, template
    changed = write_edited(path, tmp_path / "y.gguf", {"tokenizer.chat_template": text.replace(old, new)})
    tokenizer = with_(tiny.tokenizer, chat_template=text)
    refused("the chat template is another one", tiny.model, Origin(tiny.part, tiny.weights), tokenizer, changed, tiny)


def test_missing_opening_token(tiny, tmp_path):
    path = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "x.gguf")
    opened = with_(tiny.tokenizer, add_bos=True)
    refused("the opening token is missing", tiny.model, Origin(tiny.part, tiny.weights), opened, path, tiny)


def test_permuted_queries_and_keys(tiny, tmp_path):
    class Unturned(Llama):
        def to_gguf(self, name, values):
            return values

    path = export_gguf(Unturned(**tiny.part.model_dump()), tiny.weights, tiny.tokenizer, tmp_path / "x.gguf")
    says = "the distributions differ.* The cause: queries and keys are permuted: .* blk.0.attn_q.weight"
    refused(says, tiny.model, Origin(tiny.part, tiny.weights), tiny.tokenizer, path, tiny)


@pytest.mark.parametrize("strength", [0.5, 0.002])
def test_lost_adapter(tiny, tmp_path, strength):
    """A merge that never happened; a weak adapter is lost below every bar on behaviour."""
    lora = adapter(tiny.part, strength=strength)
    path = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "x.gguf")
    origin = Origin(tiny.part, merged(tiny.weights, lora), base=tiny.weights)
    says = "the adapter is lost: the file keeps 0% of"
    figures = refused(says, adapted(tiny, lora), origin, tiny.tokenizer, path, tiny)
    blind = run_gate(Reference(adapted(tiny, lora), tiny.tokenizer, tiny.held_out), path, "f16", EFFORT)
    assert blind["passed"] == (strength < 0.01)
    assert abs(figures["adapter_kept"]) < 0.1


def test_adapter_file_that_lost_a_part(tiny, tmp_path):
    lora = adapter(tiny.part)
    base = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "base.gguf")
    origin = Origin(tiny.part, tiny.weights, adapter=lora)
    model = adapted(tiny, lora)
    few = dataclasses.replace(lora, state={n: t for n, t in lora.state.items() if "q_proj" not in n})
    path = export_lora(tiny.part, few, tmp_path / "few.gguf")
    says = "the adapter is lost in 2 of 14 modules, the first is model.layers.0.self_attn.q_proj"
    refused(says, model, origin, tiny.tokenizer, base, tiny, lora=path)
    path = export_lora(tiny.part, dataclasses.replace(lora, method=LoRA(rank=4, alpha=2.0)), tmp_path / "scaled.gguf")
    refused("scale is 0.5 in the file, 1 in the model", model, origin, tiny.tokenizer, base, tiny, lora=path)
    refused("the adapter is lost: its file was not loaded", model, origin, tiny.tokenizer, base, tiny)


@pytest.mark.parametrize("change", [{"rope_scaling": None}, {"rope_scaling": LLAMA3 | {"factor": 8.0}}])
def test_wrong_rope_scale(tiny, tmp_path, change):
    part, model, weights = of_family(tiny, "llama", rope_scaling=LLAMA3)
    wrong = part.model_validate(part.model_dump() | change)
    path = export_gguf(wrong, weights, tiny.tokenizer, tmp_path / "x.gguf")
    refused("the RoPE scale is wrong: rope_freqs.weight", model, Origin(part, weights), tiny.tokenizer, path, tiny)


@pytest.mark.parametrize("key", ["attn_logit_softcapping", "final_logit_softcapping"])
def test_wrong_soft_cap(tiny, tmp_path, key):
    part, model, weights = of_family(tiny, "gemma2")
    path = export_gguf(part.model_copy(update={key: 7.0}), weights, tiny.tokenizer, tmp_path / "x.gguf")
    says = f"the soft-cap is wrong: gemma2.{key} is 7.0 in the file"
    refused(says, model, Origin(part, weights), tiny.tokenizer, path, tiny)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3_text", "qwen2", "qwen3", "phi3", "mistral", "qwen3_moe"])
def test_sound_exports_of_every_family_pass(tiny, tmp_path, name):
    part, model, weights = of_family(tiny, name)
    exported = ExportedModel("x", model, part, weights, tiny.tokenizer, tiny.held_out)
    figures = export_model(exported, Gguf(), tmp_path / "x.gguf", EFFORT)
    assert figures["passed"]


def test_sound_adapter_passes(tiny, tmp_path):
    lora = dataclasses.replace(adapter(tiny.part), base_sha256=None)
    base = Pretrained.open(export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "base.gguf"))
    out = tmp_path / "out"
    out.mkdir()
    exported = ExportedAdapter("x", base, lora, tiny.tokenizer, tiny.held_out)
    figures = export_adapter(exported, LoraGguf(), out / "x-lora.gguf", EFFORT)
    assert figures["passed"] and [p.name for p in out.iterdir()] == ["x-lora.gguf"]
    exported.__dict__["model"] = tiny.model  # without the adapter
    with pytest.raises(GateError):
        export_adapter(exported, LoraGguf(), out / "y-lora.gguf", EFFORT)
    assert [p.name for p in out.iterdir()] == ["x-lora.gguf"]


def test_a_sound_merge_says_what_it_keeps(tiny, tmp_path):
    lora = adapter(tiny.part)
    into = merged(tiny.weights, lora)
    model, merge = adapted(tiny, lora), Merge(tiny.weights, "F16")
    exported = ExportedModel("x", model, tiny.part, into, tiny.tokenizer, tiny.held_out, merge=merge)
    figures = export_model(exported, Gguf(dtype="q8_0"), tmp_path / "x.gguf", EFFORT)
    assert 0.98 < figures["adapter_kept"] < 1.02
    assert figures["merge"] == {"base_type": "F16", "limit": 0.02, "kl": figures["kl"]}


@pytest.mark.parametrize(
    ("strength", "limit", "says"),
    [
        (0.5, 0.001, r"costs 0.0\d+ nats per token \(KL, the limit is 0.001\) and keeps (99|100|101)%"),
        (0.02, 0.02, r"costs 0.00\d+ nats per token \(KL, the limit is 0.02\) and keeps 1\d% of the adapter's change"),
    ],
)
def test_a_merge_into_a_quantized_base_is_never_silent(tiny, tmp_path, strength, limit, says):
    """The base's own blocks swallow a small change that f16 keeps; and what a merge costs is said."""
    stored = read_gguf(export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "base.gguf", "q4_0")).tensors
    base = {
        name: torch.from_numpy(tiny.part.from_gguf_tensor(name, stored[there].load()).copy())
        for name, there in tiny.part.gguf_names().items()
    }
    into = merged(base, adapter(tiny.part, strength=strength))
    model = copy.deepcopy(tiny.model)
    model.load_state_dict(into)

    def export(dtype):
        merge = Merge(base, "Q4_0", limit)
        exported = ExportedModel("x", model, tiny.part, into, tiny.tokenizer, tiny.held_out, merge=merge)
        return export_model(exported, Gguf(dtype=dtype), tmp_path / "x.gguf", EFFORT)

    with pytest.raises(GateError, match=f"merging the adapter into its Q4_0 base and writing it as q4_0 {says}"):
        export("q4_0")
    assert not (tmp_path / "x.gguf").exists()
    assert export("f16")["adapter_kept"] > 0.99


@pytest.mark.parametrize("top", [2, 6])
def test_routers_that_choose_by_rounding(tiny, tmp_path, top):
    """Random routers send tokens elsewhere in bfloat16 and are named; with every expert taken, nothing is chosen."""
    shape = {"num_hidden_layers": 8, "residual_multiplier": 1.0, "num_experts": 6, "num_experts_per_tok": top}
    part, model, weights = of_family(tiny, "granitemoe", **shape)
    for name in (name for name in weights if ".experts." in name and name.endswith("down_proj.weight")):
        weights[name].mul_(20)
    path = export_gguf(part, weights, tiny.tokenizer, tmp_path / "x.gguf", "bf16")
    origin = Origin(part, weights)
    figures = run_gate(Reference(model, tiny.tokenizer, tiny.held_out), path, "bf16", EFFORT, origin=origin)
    assert figures["passed"] == (top == 6), figures["first_difference"]
    assert top == 6 or "routers choose by less than rounding" in figures["cause"]
