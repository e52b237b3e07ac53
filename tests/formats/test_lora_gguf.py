"""An adapter served by llama.cpp over its base is the adapter that was trained."""

import copy

import numpy as np
import pytest

from settle.base.errors import FormatError
from settle.formats.gguf import export_gguf, read_gguf
from settle.formats.lora_gguf import export_lora, read_lora, require_fit
from settle.infer.engine import Engine
from settle.infer.live_sampling import logprobs
from settle.model.adapters.dora import DoRA
from settle.model.adapters.lora import LoRA
from settle.model.load_adapter import TrainedAdapter
from tests.trained import adapter, merged


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    return export_gguf(tiny.part, tiny.weights, tiny.tokenizer, path, "f32")


def with_adapter(tiny, lora):
    model = copy.deepcopy(tiny.model)
    model.load_state_dict(merged(tiny.weights, lora))
    return model


def distributions(base, path, prompts):
    with Engine(base, threads=1, adapter=path) as engine:
        found = [engine.next_token_logprobs(ids) for ids in prompts]
    return np.array([[row[i] for i in range(len(row))] for row in found])


@pytest.mark.parametrize(("rslora", "dtype"), [(False, "f32"), (True, "f16")])
def test_llama_cpp_adds_it(tiny, base, tmp_path, rslora, dtype):
    method = LoRA(rank=4, alpha=3.0, rslora=rslora)
    lora = TrainedAdapter(method, adapter(tiny.part).state, "tiny", "ab" * 32)
    path = export_lora(tiny.part, lora, tmp_path / "x-lora.gguf", dtype, {"name": "x"})
    ids = tiny.tokenizer.encode("def f(self, value):\n    return self.value").tolist()
    prompts = [ids[:n] for n in (1, 5, len(ids))]
    live = with_adapter(tiny, lora)
    ours = np.array([logprobs(live, p, [len(p) - 1])[0].numpy() for p in prompts])
    np.testing.assert_allclose(distributions(base, path, prompts), ours, atol=2e-2)
    without = np.array([logprobs(tiny.model, p, [len(p) - 1])[0].numpy() for p in prompts])
    assert np.abs(ours - without).max() > 0.5
    metadata = read_lora(path).metadata
    assert metadata["general.architecture"] == "llama" and metadata["general.base_model.0.name"] == "tiny"
    assert metadata["settle.base_sha256"] == "ab" * 32 and metadata["general.name"] == "x"


def test_names_are_llama_cpps(tiny, tmp_path):
    tensors = read_lora(export_lora(tiny.part, adapter(tiny.part), tmp_path / "x.gguf")).tensors
    assert tensors["blk.1.attn_q.weight.lora_a"].shape == (4, 64)
    assert tensors["blk.1.attn_q.weight.lora_b"].shape == (64, 4)
    assert len(tensors) == 2 * 2 * 7


def test_an_adapter_that_does_not_fit(tiny, base, tmp_path):
    lora = read_lora(export_lora(tiny.part, adapter(tiny.part), tmp_path / "x.gguf"))
    require_fit(lora, read_gguf(base), ("x", "base"))
    wide = tiny.part.model_copy(update={"intermediate_size": 96})
    weights = {n: p.detach() for n, p in wide.build(0).named_parameters()}
    other = export_gguf(wide, weights, tiny.tokenizer, tmp_path / "other.gguf")
    with pytest.raises(FormatError, match=r"blk.0.ffn_gate.weight .*\(128, 64\), which has the shape \(96, 64\)"):
        require_fit(lora, read_gguf(other), ("x", "other"))
    with pytest.raises(FormatError, match="is no LoRA adapter"):
        read_lora(base)


def test_what_llama_cpp_cannot_add(tiny, tmp_path):
    state = dict(adapter(tiny.part).state)
    dora = state | {
        name.replace(".lora_A.weight", ".lora_magnitude_vector"): np.ones(1)
        for name in state
        if name.endswith(".lora_A.weight")
    }
    with pytest.raises(FormatError, match="no DoRA"):
        export_lora(tiny.part, TrainedAdapter(DoRA(rank=4, alpha=4), dora), tmp_path / "x.gguf")
    first = next(iter(state))
    for value, dtype, says in ((float("nan"), "f32", "NaN"), (1e6, "f16", "f16 cannot hold")):
        broken = TrainedAdapter(LoRA(rank=4, alpha=4), state | {first: np.full_like(state[first], value)})
        with pytest.raises(FormatError, match=says):
            export_lora(tiny.part, broken, tmp_path / "x.gguf", dtype)
    assert not list(tmp_path.iterdir())
