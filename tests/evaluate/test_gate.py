"""The gate lets sound files through and refuses files that load, look right and behave wrongly."""

import copy
import dataclasses

import pytest

from settle.base.errors import GateError
from settle.evaluate.gate.behaviour import Effort
from settle.evaluate.gate.diagnose import Origin, inspect
from settle.evaluate.gate.export import ExportedModel, export_model
from settle.evaluate.gate.gate import Reference, require, run_gate
from settle.formats.gguf import Gguf, export_gguf, read_gguf

EFFORT = dataclasses.replace(Effort(), num_texts=40, num_logprobs=1 << 15)


def gate(tiny, path, dtype="f16"):
    return run_gate(Reference(tiny.model, tiny.tokenizer, tiny.held_out), path, dtype, EFFORT)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
def test_sound_export_passes(tiny, tmp_path, dtype):
    path = tmp_path / "tiny.gguf"
    exported = ExportedModel("tiny", tiny.model, tiny.part, tiny.weights, tiny.tokenizer, tiny.held_out)
    figures = export_model(exported, Gguf(dtype=dtype), path, EFFORT)
    assert figures["passed"] and figures["first_difference"] is None and 0 < figures["seconds"] < 600
    # the bar is not where the figure happens to be: a sound export has room below it
    assert figures["kl"] < figures["bars"]["kl"] / 4
    assert figures["logit_error"] < figures["bars"]["logit_error"] / 4
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.gguf"]


def refused(tiny, tmp_path, says, weights=None, tokenizer=None, part=None):
    """Export something that is not the live model; the file loads, and the gate must name the difference."""
    path = tmp_path / "bad.gguf"
    export_gguf(part or tiny.part, weights or tiny.weights, tokenizer or tiny.tokenizer, path)
    figures = gate(tiny, path)
    assert not figures["passed"]
    assert says in figures["first_difference"]
    with pytest.raises(GateError, match="does not behave like the trained model"):
        require(figures, path)


FURTHER = pytest.param("model.layers.1.mlp.down_proj", marks=pytest.mark.exhaustive)


@pytest.mark.parametrize("name", ["model.norm", FURTHER, "model.layers.0.self_attn.k_proj"])
def test_scaled_tensor(tiny, tmp_path, name):
    weights = tiny.weights | {f"{name}.weight": tiny.weights[f"{name}.weight"] * 1.05}
    refused(tiny, tmp_path, "the distributions differ", weights=weights)


def test_swapped_tensors(tiny, tmp_path):
    gate_, up = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"
    weights = tiny.weights | {gate_: tiny.weights[up], up: tiny.weights[gate_]}
    refused(tiny, tmp_path, "the distributions differ", weights=weights)


@pytest.mark.parametrize("change", [{"rope_theta": 20000.0}, {"rms_norm_eps": 0.05}])
def test_wrong_number_in_the_header(tiny, tmp_path, change):
    refused(tiny, tmp_path, "the distributions differ", part=tiny.part.model_copy(update=change))


KEYS = {"pre": "pre", "merges": "merges", "token_types": "token_type", "add_bos": "add_bos_token"}


def with_(tokenizer, **changes):
    """A tokenizer that says something else, also in the file that it is written to."""
    changed = copy.copy(tokenizer)
    changed.metadata = tokenizer.metadata | {f"tokenizer.ggml.{KEYS[name]}": value for name, value in changes.items()}
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def test_wrong_pre_tokenizer(tiny, tmp_path):
    refused(tiny, tmp_path, "token ids differ", tokenizer=with_(tiny.tokenizer, pre="llama-bpe"))


def test_swapped_merges(tiny, tmp_path):
    """Two merges that compete for a letter."""
    merges = list(tiny.tokenizer.merges)
    first = next(i for i, m in enumerate(merges) if m.endswith("e"))
    second = next(i for i, m in enumerate(merges) if m.startswith("e "))
    merges[first], merges[second] = merges[second], merges[first]
    refused(tiny, tmp_path, "token ids differ", tokenizer=with_(tiny.tokenizer, merges=merges))


def test_merges_swapped_without_an_effect_on_the_texts(tiny, tmp_path):
    """What no text shows, the lists show."""
    merges = list(tiny.tokenizer.merges)
    merges[-1], merges[-2] = merges[-2], merges[-1]
    refused(tiny, tmp_path, "merges differ at", tokenizer=with_(tiny.tokenizer, merges=merges))


def test_special_token_that_is_text(tiny, tmp_path):
    types = [1] * len(tiny.tokenizer.token_types)
    refused(tiny, tmp_path, "token ids differ", tokenizer=with_(tiny.tokenizer, token_types=types))


def test_beginning_of_text_is_added(tiny, tmp_path):
    refused(tiny, tmp_path, "add_bos_token", tokenizer=with_(tiny.tokenizer, add_bos=True))


def test_failed_gate_hands_over_nothing(tiny, tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"the export before")
    weights = tiny.weights | {"model.norm.weight": tiny.weights["model.norm.weight"] * 2}
    with pytest.raises(GateError, match="the distributions differ"):
        exported = ExportedModel("tiny", tiny.model, tiny.part, weights, tiny.tokenizer, tiny.held_out)
        export_model(exported, Gguf(), path, EFFORT)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.gguf"]
    assert path.read_bytes() == b"the export before"


def test_model_can_be_trained_after_the_gate(tiny, tmp_path):
    """The gate leaves the model's mode, type and weights alone."""
    path = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "tiny.gguf")
    tiny.model.train()
    gate(tiny, path)
    assert tiny.model.training
    import torch

    ids = torch.arange(8)
    tiny.model(ids, torch.tensor([0, 8], dtype=torch.int32)).sum().backward()
    assert tiny.model.head.grad is None or torch.isfinite(tiny.model.head.grad).all()
    tiny.model.zero_grad()


@pytest.mark.parametrize("texts", [[], ["", "x"]])
def test_little_held_out_text(tiny, tmp_path, texts):
    """A run is not lost for it: there is some prose to compare on."""
    path = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "tiny.gguf")
    assert run_gate(Reference(tiny.model, tiny.tokenizer, texts), path)["passed"]


def test_short_context(tiny, tmp_path):
    part = tiny.part.model_copy(update={"max_position_embeddings": 16})
    path = export_gguf(part, tiny.weights, tiny.tokenizer, tmp_path / "tiny.gguf")
    figures = gate(tiny, path)
    assert figures["passed"] and figures["greedy_tokens"] > 0


DAMAGED_ROWS = {
    "model.layers.1.mlp.down_proj.weight": slice(0, 6),
    "model.layers.0.self_attn.v_proj.weight": slice(8, 16),  # half of a head
    "model.layers.0.self_attn.q_proj.weight": slice(3, 4),
    "lm_head.weight": slice(7, 8),
}


@pytest.mark.parametrize("is_own", [True, False], ids=["own", "other"])
@pytest.mark.parametrize(
    "dtype",
    ["f16", "bf16", "q8_0", "q5_1", *(pytest.param(t, marks=pytest.mark.exhaustive) for t in ("q5_0", "q4_1")), "q4_0"],
)
def test_a_few_lost_rows_are_damage(tiny, tmp_path, dtype, is_own):
    """Zeroed, halved, or exchanged for each other; what the type rounds is none, whoever quantized it."""
    origin = Origin(tiny.part, tiny.weights, is_own=is_own)
    path = tmp_path / "x.gguf"
    assert not inspect(origin, read_gguf(export_gguf(tiny.part, tiny.weights, tiny.tokenizer, path, dtype))).damage
    for name, rows in DAMAGED_ROWS.items():
        for broken in (lambda w: w * 0, lambda w: w * 0.5, lambda w: w.flip(1)):
            weights = {**tiny.weights, name: tiny.weights[name].clone()}
            weights[name][rows] = broken(weights[name][rows])
            file = read_gguf(export_gguf(tiny.part, weights, tiny.tokenizer, path, dtype))
            (said,) = inspect(origin, file).damage
            there, number = tiny.part.gguf_names()[name], rows.stop - rows.start
            assert said.startswith(f"not the model's values in rows of {there} ({number} of ")


@pytest.mark.parametrize("dtype", [pytest.param("q8_0", marks=pytest.mark.exhaustive), "q4_0"])
def test_a_zeroed_output_row_is_refused(tiny, tmp_path, dtype):
    weights = {**tiny.weights, "lm_head.weight": tiny.weights["lm_head.weight"].clone()}
    weights["lm_head.weight"][7] = 0
    path = export_gguf(tiny.part, weights, tiny.tokenizer, tmp_path / "x.gguf", dtype)
    reference = Reference(tiny.model, tiny.tokenizer, tiny.held_out)
    figures = run_gate(reference, path, dtype, EFFORT, origin=Origin(tiny.part, tiny.weights))
    assert not figures["passed"]
    assert figures["cause"].startswith("not the model's values in rows of output.weight (1 of ")
