"""Fewer blocks: which go, that the rest is an ordinary model, and what is refused."""

import pytest
import torch

from settle.base.errors import UsageError
from settle.infer.live_sampling import logprobs
from settle.shrink.activations.layer_activations import LayerWalk, kl
from settle.shrink.prunable_model import PrunableModel
from settle.shrink.pruners.depth import Depth, without
from tests.model.architectures.cases import BEYOND_GGUF, CASES, each
from tests.shrink.pruners.subjects import assert_ordinary, random_subject, trained_subject, windows


@pytest.mark.parametrize("name", each(name for name in CASES if name not in BEYOND_GGUF))
@pytest.mark.parametrize("by", ["loss", "influence"])
def test_every_family_stays_an_ordinary_model(name, by, tokenizer, tmp_path) -> None:
    subject = random_subject(CASES[name], tokenizer)
    if not subject.part.options().is_plain:
        with pytest.raises(UsageError, match="layers are not taken one by one|the smaller model would not run"):
            Depth(share=0.4, by=by).prune(subject, windows(subject), [])
        return
    number = subject.num_layers // 2
    if name == "lfm2_moe":  # llama.cpp puts its few layers with attention where they are
        with pytest.raises(UsageError, match="leave 1"):
            Depth(share=number / subject.num_layers, by=by).prune(subject, windows(subject), [])
        return
    pruned = Depth(share=number / subject.num_layers, by=by).prune(subject, windows(subject), [])
    assert pruned.subject.num_layers == subject.num_layers - number
    assert len(pruned.report["removed"]) == number
    assert pruned.report["kl"] > 0
    assert_ordinary(pruned.subject, tmp_path)


def _deep(tokenizer, useless=(1, 2, 4), family: str = "llama") -> PrunableModel:
    """Six blocks, some of which do next to nothing."""
    subject = random_subject(CASES[family].with_fields(num_hidden_layers=6), tokenizer)
    weights = dict(subject.weights)
    for layer in useless:
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            weights[f"model.layers.{layer}.{name}.weight"] = 1e-3 * weights[f"model.layers.{layer}.{name}.weight"]
    return subject.with_part(subject.part, weights)


@pytest.mark.parametrize("by", ["loss", "influence"])
def test_the_blocks_that_do_nothing_go(by, tokenizer) -> None:
    subject = _deep(tokenizer)
    pruned = Depth(share=0.5, by=by).prune(subject, windows(subject), [])
    assert pruned.report["removed"] == [1, 2, 4]
    assert pruned.report["kl"] < 1e-2
    in_a_row = Depth(drop=2, by=by, in_a_row=True).prune(subject, windows(subject), [])
    assert in_a_row.report["removed"] == [1, 2]
    assert in_a_row.report["blocks"] == [6, 4]


def test_the_report_tells_the_divergence_of_the_model_that_is_handed_back(tokenizer) -> None:
    subject = _deep(tokenizer, useless=())
    text = windows(subject, 4)
    pruned = Depth(drop=1).prune(subject, text, [])
    rows = [
        torch.cat([logprobs(s.build(), window, range(len(window))) for window in text])
        for s in (subject, pruned.subject)
    ]
    assert kl(*rows) == pytest.approx(pruned.report["kl"], rel=1e-3)
    assert pruned.report["kl"] == pytest.approx(min(pruned.report["scores"]), rel=1e-3)


def test_sliding_and_seeing_blocks_follow_each_other_as_llama_cpp_has_them(tokenizer) -> None:
    subject = random_subject(CASES["gemma3_text"].with_fields(num_hidden_layers=18), tokenizer)
    for left in (17, 14, 12, 7, 3):
        part = Depth(drop=18 - left, by="influence").prune(subject, windows(subject, 2), []).subject.part
        part.gguf_metadata()
        assert [part.slides(i) for i in range(left)] == [(i + 1) % 6 != 0 for i in range(left)]


def test_what_llama_cpp_does_not_load_is_refused_with_what_it_does(tokenizer) -> None:
    subject = random_subject(CASES["gemma3_text"].with_fields(num_hidden_layers=12), tokenizer)
    text = windows(subject, 2)
    # in a row only the tail and whole periods can go
    assert Depth(drop=6, in_a_row=True).prune(subject, text, []).subject.num_layers == 6
    tail = Depth(drop=2, in_a_row=True).prune(subject, text, [])
    assert tail.report["removed"] == [10, 11]
    odd = CASES["gemma3_text"].with_fields(num_hidden_layers=5, layer_types=("full_attention",) * 5)
    with pytest.raises(UsageError, match="loads no gemma3_text of 3 blocks"):
        Depth(drop=2).prune(random_subject(odd, tokenizer), text, [])
    with pytest.raises(UsageError, match="9 of 2 blocks cannot go"):
        Depth(drop=9).prune(random_subject(CASES["llama"], tokenizer), text, [])
    largest = random_subject(CASES["gemma2"].with_fields(num_hidden_layers=46, query_pre_attn_scalar=8), tokenizer)
    with pytest.raises(UsageError, match="would not run: llama.cpp divides"):
        Depth(drop=2, by="influence").prune(largest, text, [])


def test_windows_of_qwen_keep_their_proportion(tokenizer) -> None:
    part = CASES["qwen2-windows"].with_fields(num_hidden_layers=6, max_window_layers=4)
    kept = Depth(drop=3, by="influence").prune(random_subject(part, tokenizer), windows(trained_subject(), 2), [])
    assert [kept.subject.part.window(i) for i in range(3)] == [None, None, 8]
    types = ("full_attention",) * 4 + ("sliding_attention",) * 2
    named = part.with_fields(layer_types=types).shortened(3)
    assert named.layer_types == ("full_attention", "full_attention", "sliding_attention")


def test_a_walk_is_the_model(tokenizer) -> None:
    subject = trained_subject()
    text = windows(subject, 5, 20) + [[1, 2, 3]]
    model = subject.build()
    walk = LayerWalk(subject.build(trainable=False), text, most_tokens=50)
    assert len(walk.inputs) == 3 and walk.num_tokens == 103
    layers = range(subject.num_layers)
    own = walk.logprobs(walk.through(layers, walk.first()), torch.arange(103))
    expected = torch.cat([logprobs(model, window, range(len(window))) for window in text])
    torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama-biases-tied", "gemma2", "gemma3_text", "phi3-longrope", "qwen3"])
def test_the_parts_of_a_layer_add_up(name, tokenizer) -> None:
    subject = random_subject(CASES[name], tokenizer)
    walk = LayerWalk(subject.build(trainable=False), windows(subject, 3))
    states = walk.first()
    for number in range(subject.num_layers):
        parts = list(walk.activations(number, states))
        states = walk.layer(number, states)
        for part, state in zip(parts, states, strict=True):
            torch.testing.assert_close(part.after, state)


def test_training_what_was_built_leaves_the_subject_as_it_is(tokenizer) -> None:
    subject = trained_subject()
    before = {name: tensor.clone() for name, tensor in subject.weights.items()}
    model = without(subject, [1]).build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in subject.weights.items())


def test_a_search_ends_when_its_time_is_over(tokenizer) -> None:
    """What was measured first decides then; every layer that is computed is told."""
    subject, seen = _deep(tokenizer), []

    def on_progress(done: int, total: int) -> bool:
        seen.append((done, total))
        return False

    pruned = Depth(drop=3).prune(subject, windows(subject), [], on_progress)
    assert pruned.report["removed"] == [1, 2, 4]
    assert seen[-1] == (21, 46) and [done for done, _ in seen] == sorted(done for done, _ in seen)
    whole = []
    Depth(drop=3).prune(subject, windows(subject), [], lambda done, total: whole.append((done, total)) or True)
    assert whole[-1] == (46, 46)
