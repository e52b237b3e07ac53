"""Narrower models: channels, heads and width. What goes, what the rest makes up for, and that it stays ordinary."""

import pytest
import torch

from settle.base.errors import DataError, UsageError
from settle.base.registry import parts
from settle.infer.live_sampling import logprobs
from settle.shrink.activations.layer_activations import LayerWalk, eliminate, error, gram, kl, refitted
from settle.shrink.prunable_model import PrunableModel
from settle.shrink.pruners import Pruner
from settle.shrink.pruners.channels import Channels
from settle.shrink.pruners.heads import Heads
from settle.shrink.pruners.width import Width, _strengths
from tests.model.architectures.cases import BEYOND_GGUF, CASES, each
from tests.shrink.pruners.subjects import DENSE, assert_ordinary, more_code, random_subject, trained_subject, windows

WRITTEN = [name for name in DENSE if name not in BEYOND_GGUF]
ALL = {"channels": Channels(share=0.3), "groups": Heads(share=0.5, what="groups"), "width": Width(share=0.25)}
ALL["queries"] = Heads(share=0.5, what="queries")


@pytest.mark.parametrize("name", each(WRITTEN))
@pytest.mark.parametrize("how", ALL)
def test_every_dense_family_stays_an_ordinary_model(name, how, tokenizer, tmp_path) -> None:
    subject = random_subject(CASES[name], tokenizer)
    o = subject.part.options().layers[0]
    unequal = len({layer.head_dim for layer in subject.part.options().layers}) > 1
    of_heads = unequal or o.whole_norms or o.fused_by_head
    if {"width": o.centred_norms, "channels": False}.get(how, of_heads):
        with pytest.raises(UsageError, match="pruned"):
            ALL[how].prune(subject, windows(subject), [])
        return
    if (how == "groups" and o.kv_heads == 1) or (how == "queries" and o.heads == o.kv_heads):
        with pytest.raises(UsageError, match="there is only one of the"):
            ALL[how].prune(subject, windows(subject), [])
        return
    if how != "channels" and subject.part.QUERIES_ARE_WIDTH:
        with pytest.raises(UsageError, match="query heads together are as wide as the model"):
            ALL[how].prune(subject, windows(subject), [])
        return
    pruned = ALL[how].prune(subject, windows(subject), []).subject
    assert pruned.num_parameters < subject.num_parameters
    left = pruned.part.options().layers[0]
    if how == "channels":
        assert (left.inner, left.width, left.heads) == ({48: 32, 128: 96}[o.inner], o.width, o.heads)
    elif how == "width":
        assert (left.width, left.inner, left.head_dim) == (24, o.inner, o.head_dim)
    else:
        assert left.heads == o.heads // 2
        assert left.kv_heads == (o.kv_heads // 2 if how == "groups" else o.kv_heads)
    assert_ordinary(pruned, tmp_path)


@pytest.mark.parametrize("name", ["qwen3_moe", "lfm2", "qwen3_5_text", "gemma4_text"])
@pytest.mark.parametrize("how", ALL)
def test_others_are_refused_by_name(name, how, tokenizer) -> None:
    subject = random_subject(CASES[name], tokenizer)
    with pytest.raises(UsageError, match="are not pruned here"):
        ALL[how].prune(subject, windows(subject), [])


@pytest.mark.parametrize("name", ["qwen2", "phi3", "phi3-longrope", "phi3-window"])
def test_heads_and_width_go_together_where_llama_cpp_takes_one_for_the_other(name, tokenizer, tmp_path) -> None:
    subject = random_subject(CASES[name], tokenizer)
    o = subject.part.options().layers[0]
    what = "queries" if o.kv_heads == 1 else "groups"
    text = windows(subject)
    with pytest.raises(UsageError, match="prune the width to 16 too; the nearest with all heads is 32"):
        Heads(share=0.5, what=what).prune(subject, text, [])
    with pytest.raises(UsageError, match="prune heads first, as a step: . of them are"):
        Width(share=0.5).prune(subject, text, [])
    fewer = Heads(share=0.5, what=what, step=True).prune(subject, text, []).subject
    assert_ordinary(Width(keep=16).prune(fewer, text, []).subject, tmp_path)


def test_the_readers_of_every_norm_have_the_same_say(tokenizer) -> None:
    subject = random_subject(CASES[DENSE[0]], tokenizer)
    walk = LayerWalk(subject.build(trainable=False), windows(subject))
    strength, power = _strengths(walk, subject, lambda layer: None)
    assert float(strength.sum()) == pytest.approx(2 * subject.num_layers + 1) and float(strength.min()) > 0
    assert len(power.streams) == 2 * subject.num_layers + 1


def _distance(one: PrunableModel, other: PrunableModel, number: int = 6) -> float:
    text = windows(one, 40)[-number:]
    rows = [torch.cat([logprobs(s.build(), window, range(len(window))) for window in text]) for s in (one, other)]
    return kl(*rows)


@pytest.mark.parametrize(
    "pruner",
    [Channels(share=0.25), Heads(share=0.5), Heads(share=0.5, what="queries"), Width(keep=48)],
    ids=["channels", "groups", "queries", "width"],
)
def test_repair_brings_back_a_good_part_of_a_trained_model(pruner) -> None:
    subject = trained_subject()
    text = windows(subject, 40)[:32] + windows(subject, 250, text=more_code())
    plain = pruner.model_copy(update={"repair": False}).prune(subject, text, [])
    repaired = pruner.prune(subject, text, [])
    without, with_it = (_distance(subject, p.subject) for p in (plain, repaired))
    assert with_it < 0.9 * without
    assert repaired.report.get("repaired_blocks", repaired.report.get("fitted_matrices")) > 0


def _wider(subject: PrunableModel, factor: float = 0.0) -> PrunableModel:
    """Twice as many channels everywhere; the new ones do nothing."""
    weights = {}
    part = subject.part.with_fields(hidden_size=128, intermediate_size=256)
    for name, shape in part.parameters().items():
        old = subject.weights[name]
        new = torch.zeros(shape)
        ratio = 2**-0.5 if name.endswith("norm.weight") else 1.0  # zeros are counted in the mean
        new[tuple(slice(0, size) for size in old.shape)] = old * ratio
        weights[name] = new
    return subject.with_part(part, weights)


def test_channels_that_do_nothing_are_the_ones_that_go() -> None:
    subject = trained_subject()
    wide = _wider(subject)
    text = windows(subject, 10)
    narrow = Channels(keep=128).prune(Width(keep=64).prune(wide, text, []).subject, text, [])
    assert narrow.subject.part == subject.part
    assert _distance(subject, narrow.subject) < 1e-4


def test_a_copy_of_a_channel_is_made_up_for() -> None:
    subject = trained_subject()
    weights = dict(subject.weights)
    for name in ("gate_proj", "up_proj"):
        weights[f"model.layers.0.mlp.{name}.weight"] = weights[f"model.layers.0.mlp.{name}.weight"].clone()
        weights[f"model.layers.0.mlp.{name}.weight"][64:] = weights[f"model.layers.0.mlp.{name}.weight"][:64]
    report = Channels(keep=64).prune(subject.with_part(subject.part, weights), windows(subject, 20), []).report
    assert report["errors"][0] < 0.01 < report["errors"][1]


def test_heads_go_with_their_keys_and_values() -> None:
    subject = trained_subject()
    weights = dict(subject.weights)
    name = "model.layers.0.self_attn.o_proj.weight"
    weights[name] = weights[name].clone()
    weights[name][:, 32:] *= 1e-3  # heads 2 and 3, which read the second key/value head
    pruned = Heads(share=0.5).prune(subject.with_part(subject.part, weights), windows(subject), [])
    assert pruned.report["removed_queries"][0] == [2, 3]
    for proj, width in (("q_proj", 32), ("k_proj", 16), ("v_proj", 16)):
        left = pruned.subject.weights[f"model.layers.0.self_attn.{proj}.weight"]
        assert torch.equal(left, subject.weights[f"model.layers.0.self_attn.{proj}.weight"][:width])
    queries = Heads(share=0.5, what="queries").prune(subject, windows(subject), []).report["removed_queries"]
    assert all(len([h for h in gone if h < 2]) == len([h for h in gone if h > 1]) == 1 for gone in queries)


def test_inputs_are_taken_that_cost_least_together() -> None:
    random = torch.Generator().manual_seed(0)
    basis = torch.randn(400, 6, generator=random)
    rows = basis @ torch.randn(6, 24, generator=random) + 0.01 * torch.randn(400, 24, generator=random)
    weight = torch.randn(5, 24, generator=random)
    found = eliminate(weight, gram([rows]), torch.arange(24).unsqueeze(1), torch.zeros(24, dtype=torch.long), 8)
    assert found.weight.shape == (5, 8) and error([rows], weight, [rows[:, found.kept]], found.weight) < 0.02
    assert error([rows], weight, [rows[:, found.kept]], weight[:, found.kept]) > 0.3
    best = torch.linalg.lstsq(rows[:, found.kept], rows @ weight.T).solution.T
    assert error([rows], weight, [rows[:, found.kept]], best) < 0.01
    again = refitted(weight, gram([rows[:, found.kept]]), gram([rows[:, found.kept]], [rows]), torch.zeros(5, 8))
    assert error([rows], weight, [rows[:, found.kept]], again) < 0.02


def test_what_cannot_be_pruned_is_said(tokenizer) -> None:
    experts = random_subject(CASES["qwen3_moe"], tokenizer)
    for pruner in (Channels(), Heads(), Width()):
        with pytest.raises(UsageError, match="mixture of experts are not pruned"):
            pruner.prune(experts, windows(experts), [])
    subject = trained_subject()
    with pytest.raises(UsageError, match="128 channels of 128 cannot be kept — keep at most 127"):
        Channels(keep=128).prune(subject, windows(subject), [])
    with pytest.raises(DataError, match="no text"):
        Channels().prune(subject, [], [])


def test_every_pruner_is_found() -> None:
    found = parts("shrink/pruners")
    assert set(found) == {"channels", "depth", "heads", "vocabulary", "width"}
    assert all(issubclass(part, Pruner) for part in found.values())
