"""Every adapter over every architecture against the contract; and one that is added as a single file."""

import pytest
import torch
from torch import Tensor

from settle.formats.lora_gguf import export_lora
from settle.formats.peft import export_peft
from settle.model import adapters
from settle.model.adapters import Adapter
from settle.model.adapters.lora import LoRA
from settle.model.architectures import Architecture
from settle.model.layers.frozen_weights import FrozenDense
from settle.model.load_adapter import TrainedAdapter, attach, open_adapter
from settle.train.objectives.next_token import NextToken
from settle.train.optimizers.adamw import AdamW
from tests.model.adapters.test_adapters import stir
from tests.model.architectures.cases import further, random_model
from tests.model.test_llama import packed

LENGTHS = [7, 9, 16, 1]
METHODS = [*Adapter.part_names(), "ia3"]
FAMILIES = Architecture.parts()


EVERY = pytest.mark.parametrize(
    ("method", "architecture"),
    [
        pytest.param(method, family, marks=pytest.mark.exhaustive if further(family) and method != "lora" else ())
        for method in METHODS
        for family in FAMILIES
    ],
    indirect=True,
)


@pytest.fixture
def method(request: pytest.FixtureRequest, installed_ia3: None) -> Adapter:
    return Adapter.make(request.param, {})


@pytest.fixture
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return FAMILIES[request.param].TINY


@EVERY
def test_it_changes_nothing_at_first_and_trains_itself_only(method: Adapter, architecture: Architecture) -> None:
    model = random_model(architecture)
    inputs, targets, bounds = packed(LENGTHS, architecture.vocab_size)
    before = model(inputs, bounds).detach()
    names = method.apply(model)
    assert names == method.targeted(architecture.linears()) and set(names) == set(architecture.linears()) & set(names)
    torch.testing.assert_close(model(inputs, bounds), before, atol=1e-4, rtol=1e-4)
    trained = model.trainable()
    assert all(".adapter." in name for name in trained)
    assert sum(p.numel() for p in trained.values()) == method.num_parameters(architecture.linears())
    assert set(method.kept_numbers(architecture.linears())) == set(names)
    stepper = AdamW(lr=method.LEARNING_RATE).bind(model)
    losses = []
    for _ in range(4):
        model.zero_grad()
        loss, count = NextToken().loss(model, inputs, targets.clamp(min=0), bounds)
        (loss / count).backward()
        stepper.step(1.0)
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    with model.without_adapters():
        torch.testing.assert_close(model(inputs, bounds), before, atol=1e-4, rtol=1e-4)


@EVERY
def test_merged_it_computes_the_same(method: Adapter, architecture: Architecture) -> None:
    model = random_model(architecture)
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    method.apply(model)
    stir(model)
    inputs, _, bounds = packed(LENGTHS, architecture.vocab_size)
    expected = model(inputs, bounds)
    merged = adapters.Merged(model)
    other = architecture.skeleton("cpu")
    for name, numbers in merged.items():
        other.put(name, numbers)
    torch.testing.assert_close(other(inputs, bounds), expected, atol=2e-4, rtol=1e-3)
    made = TrainedAdapter.of_model(model, method, "x", "")
    for module, (down, up) in (made.lora.pairs if made.lora else {}).items():
        name = made.parameters(architecture)[module]
        added = base[name] + made.lora.alpha / len(down) * torch.from_numpy(up @ down)
        torch.testing.assert_close(merged[name], added, atol=1e-5, rtol=1e-4)


@EVERY
def test_its_files_make_the_same_model(method: Adapter, architecture: Architecture, tmp_path) -> None:
    model = random_model(architecture)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    method.apply(model)
    stir(model)
    made = TrainedAdapter.of_model(model, method, "base", "ab" * 32)
    back = open_adapter(export_peft(architecture, made, tmp_path / "adapter")).apart(architecture)
    assert type(back.method) is type(method) and (back.base, back.base_sha256) == ("base", "ab" * 32)
    assert set(back.modules) == set(made.modules) and back.parameters(architecture)
    other = architecture.skeleton("cpu")
    for name, numbers in weights.items():
        other.put(name, FrozenDense(numbers))
    attach(other, back)
    inputs, _, bounds = packed(LENGTHS, architecture.vocab_size)
    torch.testing.assert_close(other(inputs, bounds), model(inputs, bounds), atol=1e-5, rtol=1e-5)
    if made.lora is not None:
        assert export_lora(architecture, made, tmp_path / "x.gguf").exists()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_ia3_equals_peft(installed_ia3: None, tmp_path) -> None:
    """The example of docs/develop.md computes what PEFT's IA3 computes, biases of keys and values included."""
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM

    architecture = FAMILIES["qwen2"].TINY
    model = random_model(architecture)
    config = AutoConfig.for_model(**architecture.to_hf_config())
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    theirs.load_state_dict({name: p.detach() for name, p in model.named_parameters()}, strict=False)
    method = Adapter.make("ia3", {})
    method.apply(model)
    stir(model, 0.5)
    export_peft(architecture, TrainedAdapter.of_model(model, method, "x", ""), tmp_path)
    loaded = PeftModel.from_pretrained(theirs, tmp_path)
    inputs, _, bounds = packed([24], architecture.vocab_size)
    with torch.no_grad():
        ours: Tensor = model.logits(model(inputs, bounds))
        torch.testing.assert_close(ours, loaded(inputs[None]).logits[0], atol=1e-3, rtol=1e-3)


def test_the_scale_is_alpha_over_the_rank_or_its_root() -> None:
    assert LoRA(rank=16, alpha=8.0).scale == 0.5 and LoRA(rank=16, alpha=8.0, rslora=True).scale == 2.0
