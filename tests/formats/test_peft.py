"""Adapters that peft loads, and adapters that peft wrote."""

import json
from importlib import import_module

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from settle.base.errors import FormatError
from settle.formats.peft import CONFIG, FILE, export_peft
from settle.formats.safetensors import export_safetensors
from settle.model.adapters import PREFIX
from settle.model.adapters.dora import DoRA
from settle.model.adapters.lora import LoRA
from settle.model.load_adapter import TrainedAdapter, open_adapter
from tests.trained import adapter, merged

# peft asks transformers for something that transformers has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

IDS = torch.arange(3, 40)[None]
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    return export_safetensors(tiny.part, tiny.weights, tiny.tokenizer, folder)


def peft():
    """Imported by the worker that runs these tests: it takes seconds, and every worker collects them."""
    return import_module("peft")


def theirs(base):
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits[0]


def merged_logits(tiny, base, lora: TrainedAdapter):
    """transformers' logits with the adapter added to the weights by the book."""
    model = theirs(base)
    model.load_state_dict(merged(tiny.weights, lora))
    return logits(model)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("names", [LINEARS, ["q_proj", "v_proj"], ["layers.1.mlp.up_proj"]])
def test_peft_loads_it_with_equal_logits(tiny, base, tmp_path, names, rslora):
    whole = adapter(tiny.part)
    state = {n: t for n, t in whole.state.items() if any(f"{name}.lora" in n for name in names)}
    lora = TrainedAdapter(LoRA(rank=4, alpha=6.5, rslora=rslora), state, "tiny", "ab" * 32)
    export_peft(tiny.part, lora, tmp_path)
    loaded = peft().PeftModel.from_pretrained(theirs(base), tmp_path)
    adapted = {n.removesuffix(".lora_A.default") for n, _ in loaded.named_modules() if n.endswith("lora_A.default")}
    assert adapted == {PREFIX + module for module in lora.modules}
    torch.testing.assert_close(logits(loaded), merged_logits(tiny, base, lora), rtol=1e-4, atol=1e-4)
    assert (logits(loaded) - logits(theirs(base))).abs().max() > 0.1
    back = open_adapter(tmp_path)
    assert (back.method.alpha, back.method.rslora, back.method.rank) == (6.5, rslora, 4)
    assert back.modules == lora.modules
    assert (back.base, back.base_sha256) == ("tiny", "ab" * 32)
    assert all(np.array_equal(back.state[n], t) for n, t in state.items())


def peft_made(base, folder, **settings):
    """An adapter that peft itself made and saved, with a B that is not zero; (its model, the adapter read back)."""
    torch.manual_seed(0)
    config = peft().LoraConfig(
        task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 8, "target_modules": LINEARS, **settings}
    )
    model = peft().get_peft_model(theirs(base), config).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    model.save_pretrained(folder)
    return model, open_adapter(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"target_modules": "all-linear"},
        {"target_modules": r".*layers\.1\..*(q_proj|down_proj)"},
        {"rank_pattern": {"v_proj": 2, "layers.0.mlp.up_proj": 6}, "alpha_pattern": {"q_proj": 3}},
        {"rank_pattern": {".*_proj": 3}, "use_rslora": True, "alpha_pattern": {r"layers\.1\..*": 5}},
    ],
)
def test_what_peft_wrote_means_the_same_here(tiny, base, tmp_path, settings):
    model, lora = peft_made(base, tmp_path, **settings)
    torch.testing.assert_close(merged_logits(tiny, base, lora), logits(model), rtol=1e-4, atol=1e-4)
    assert len({len(lora.lora.pairs[module][0]) for module in lora.modules}) == 1


def test_dora_goes_there_and_back(base, tiny, tmp_path):
    model, dora = peft_made(base, tmp_path / "theirs", use_dora=True)
    assert isinstance(dora.method, DoRA)
    export_peft(tiny.part, dora, tmp_path / "ours")
    loaded = peft().PeftModel.from_pretrained(theirs(base), tmp_path / "ours")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"bias": "lora_only"}, "bias = 'lora_only'"),
        ({"modules_to_save": ["embed_tokens"]}, r"modules_to_save = \['embed_tokens'\]"),
        ({"init_lora_weights": "pissa"}, "started with pissa, which changes the base"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ],
)
def test_more_than_lora_is_refused(base, tmp_path, settings, says):
    with pytest.raises(FormatError, match=says):
        peft_made(base, tmp_path, **settings)


def test_other_adapters_are_refused(tmp_path, tiny):
    export_peft(tiny.part, adapter(tiny.part), tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {"peft_type": "OFT"}))
    with pytest.raises(FormatError, match="adapter of type 'OFT'"):
        open_adapter(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(config))
    (tmp_path / FILE).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(FormatError, match="pickle"):
        open_adapter(tmp_path)
    (tmp_path / CONFIG).unlink()
    with pytest.raises(FormatError, match="there is no adapter_config.json"):
        open_adapter(tmp_path)


def test_halves_and_strangers(tiny, tmp_path):
    whole = adapter(tiny.part)
    state = dict(whole.state)
    first = next(iter(state))
    with pytest.raises(FormatError, match="is no tensor of a LoRA"):
        TrainedAdapter(whole.method, state | {"base_model.model.x.weight": state[first]})
    with pytest.raises(FormatError, match="lacks model.layers.0.self_attn.q_proj.lora_A.weight"):
        TrainedAdapter(whole.method, {n: t for n, t in state.items() if n != first})
    with pytest.raises(FormatError, match="is empty"):
        TrainedAdapter(whole.method, {})
    misfit = state | {first: np.ones((3, state[first].shape[1]), np.float32)}
    export_peft(tiny.part, TrainedAdapter(whole.method, misfit), tmp_path)
    with pytest.raises(FormatError, match=r"pair for model.layers.0.self_attn.q_proj has the shapes \(3, 64\)"):
        open_adapter(tmp_path)


def test_another_base(tiny, tmp_path):
    lora = adapter(tiny.part)
    lora.require_base("ab" * 32, "tiny")
    lora.require_base(None, "tiny")
    with pytest.raises(FormatError, match="trained on tiny with sha256 abababababab…, and other has cdcdcdcdcdcd…"):
        lora.require_base("cd" * 32, "other")
    with pytest.raises(FormatError, match=r"model.layers.1.self_attn.q_proj, which a llama of this size does not have"):
        export_peft(tiny.part.model_copy(update={"num_hidden_layers": 1}), lora, tmp_path)
