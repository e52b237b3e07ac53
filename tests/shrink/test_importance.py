import numpy as np
import pytest
import torch

from settle.model.families import families
from settle.shrink.activations.importance import Inputs, observed, packed
from tests.trained import trained

FAMILIES = families()


@torch.no_grad()
def importance_of(model, part, windows, dataset=""):
    inputs = Inputs(model)
    with observed(model, inputs.see):
        for window in windows:
            inputs.see_head(model(*packed([window], model.device)))
    return inputs.importance(part, dataset)


def _windows(vocab: int, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, vocab, length) for length in (24, 9, 17)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_of_every_family_is_measured(family):
    part = FAMILIES[family].TINY
    model = part.build(seed=1)
    windows = _windows(part.vocab_size)
    found = importance_of(model, part, windows, "noise")
    matrices = {part.gguf_names()[n]: s for n, s in part.parameters().items() if len(s) == 2}
    if "output.weight" in matrices:
        del matrices["token_embd.weight"]  # it is looked up, not multiplied
    # of a Gemma 3n and 4 outside the layers: looked up, and projections of the stream
    for name in ("per_layer_token_embd", "per_layer_model_proj", "altup_proj", "altup_unembd_proj"):
        matrices.pop(f"{name}.weight", None)
    assert set(found.means) == set(matrices)
    names = list(part.gguf_names().values())
    for name, shape in matrices.items():
        assert found.means[name].shape == (names.count(name) * shape[1],) and found.means[name].dtype == np.float32
        assert (found.means[name] >= 0).all() and found.means[name].max() > 0
    assert found.num_tokens == sum(map(len, windows)) and found.datasets == ["noise"]


def test_means_are_those_of_the_inputs():
    t = trained()
    windows = _windows(t.part.vocab_size)
    found = importance_of(t.model, t.part, windows).means
    weights = t.weights
    with torch.no_grad():
        first = torch.cat([weights["model.embed_tokens.weight"][torch.from_numpy(w)] for w in windows])
        unit = first / (first.square().mean(-1, keepdim=True) + t.part.rms_norm_eps).sqrt()
        read = unit * weights["model.layers.0.input_layernorm.weight"]
        last = torch.cat([t.model(*packed([w])) for w in windows])
    assert found["blk.0.attn_q.weight"] == pytest.approx(read.square().mean(0).numpy(), rel=1e-4)
    assert np.array_equal(found["blk.0.attn_q.weight"], found["blk.0.attn_v.weight"])
    assert found["output.weight"] == pytest.approx(last.square().mean(0).numpy(), rel=1e-4)


@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_watched_computes_as_before(frozen):
    part = FAMILIES["gemma3_text"].TINY if "gemma3_text" in FAMILIES else FAMILIES["llama"].TINY
    model = part.build(seed=2)
    if frozen:
        model.freeze()
    batch = packed(_windows(part.vocab_size))
    with torch.no_grad():
        plain = model(*batch)
        with observed(model, lambda linears, x: None):
            watched = model(*batch)
        after = model(*batch)
    assert torch.equal(plain, after)
    assert torch.allclose(plain, watched, atol=1e-5)
