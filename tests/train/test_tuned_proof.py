"""The proof of a model that others trained: in its place, in float32, with an adapter or without."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from settle.base.errors import ProofError
from settle.base.event_log import Events
from settle.data.batches import Batch
from settle.model.adapters.dora import DoRA
from settle.model.adapters.lora import LoRA
from settle.model.architectures import Architecture
from settle.model.decoder import Decoder
from settle.model.layers.decoder_layer import TopExperts
from settle.train.objectives import Objective
from settle.train.objectives.dpo import DPO
from settle.train.objectives.next_token import NextToken
from settle.train.optimizers.adamw import AdamW
from settle.train.proof import Recipe, prove
from tests.records import into
from tests.train.source_rows import packed, source_rows
from tests.train.test_proof import CHECKS, WrongBackward, make_leaking

LENGTHS = (20, 9, 33, 12)


LORA = LoRA(rank=4, dropout=0.1)


def tuned(family: str = "llama", method: LoRA | None = LORA) -> Decoder:
    tiny = Architecture.parts()[family].TINY
    model = (tiny.shortened(2) if family == "gemma2" else tiny).build(seed=1)  # a period of its windows
    if method is not None:
        method.apply(model, seed=2)
    return model


def shown(model: Decoder, objective: Objective | None = None, data: Batch | None = None) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    listening = Events(listeners=[into(events)])
    vocab_size = model.options.vocab_size
    data = data or packed(LENGTHS, vocab_size, answers=True)
    recipe = Recipe(model, objective or NextToken(), AdamW(), data, source_rows(data), vocab_size, tuned=True)
    prove(recipe, listening)
    return events


EVERY = Architecture.part_names()
DORA = ("gemma2", "llama", "phi3", "qwen2")  # the others: bench/proof_faults.py, which has minutes
# one of each kind of layer; mixtures of experts are further down, and tests/abilities proves every family
TRIED = (*DORA, "falcon_h1", "gpt_neox", "gpt_oss", "granitemoehybrid", "lfm2", "qwen3_5_text")


@pytest.mark.parametrize(
    ("method", "family"),
    [
        *(
            pytest.param(LORA, family, id=f"lora-{family}", marks=() if family in TRIED else pytest.mark.exhaustive)
            for family in EVERY
        ),
        *(
            pytest.param(None, family, id=f"full-{family}", marks=() if family in DORA else pytest.mark.exhaustive)
            for family in EVERY
        ),
        *(pytest.param(DoRA(rank=4), family, id=f"dora-{family}") for family in EVERY if family in DORA),
    ],
)
def test_a_right_recipe_is_proven_and_left_as_it_was(family: str, method: LoRA | None) -> None:
    model = tuned(family, method)
    model.train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert [e["passed"] for e in shown(model)] == [True] * CHECKS
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("method", [LoRA(rank=4), DoRA(rank=4)], ids=["lora", "dora"])
def test_preferences_are_proven(method: LoRA) -> None:
    events = shown(tuned("llama", method), DPO())
    assert [e["passed"] for e in events] == [True] * CHECKS and events[1]["detail"] == "0.693, as it must be"


def test_half_precision_is_proven_and_comes_back() -> None:
    model = tuned()
    model.compute_dtype = torch.bfloat16
    shown(model)
    assert model.compute_dtype == torch.bfloat16


def test_a_wrong_backward_of_one_adapter_is_named() -> None:
    model = tuned("llama", LoRA(rank=4))
    adapter = model.linears()["model.layers.0.mlp.up_proj"].adapter
    assert adapter is not None
    wrong = adapter.lora_B

    class Loss(NextToken):
        def loss(self, model: Any, *args: Tensor) -> tuple[Tensor, int]:
            total, count = super().loss(model, *args)
            if torch.is_grad_enabled():
                total = total + 0.1 * count * (wrong - wrong.detach()).sum()
            return total, count

    with pytest.raises(ProofError, match=r"layers\.0\.mlp\.up_proj\.adapter\.lora_B: .* off finite differences"):
        shown(model, Loss())


def test_a_wrong_backward_of_everything_is_found() -> None:
    model = tuned("llama", LoRA(rank=4, targets=["q_proj", "down_proj"]))
    model.model.norm.register_forward_hook(lambda module, args, out: WrongBackward.apply(out, 1.1))
    with pytest.raises(ProofError, match="off finite differences"):
        shown(model)


def test_attention_across_rows_is_found_with_its_row() -> None:
    model = tuned()
    make_leaking(model)
    with pytest.raises(ProofError, match=r"row 2 \(rows.jsonl:2\)|row 1 \(rows.jsonl:1\)"):
        shown(model)


def test_a_base_that_its_rows_do_not_fit_is_refused() -> None:
    model = tuned()
    with torch.no_grad():
        model.head.mul_(60)
    with pytest.raises(ProofError, match="less likely than guessing"):
        shown(model)


def test_preferences_must_begin_at_the_base() -> None:
    model = tuned()
    linear = model.linears()["model.layers.0.mlp.up_proj"]
    assert linear.adapter is not None
    with torch.no_grad():
        linear.adapter.lora_B.add_(0.5)
    with pytest.raises(ProofError, match="the first loss is"):
        shown(model, DPO(beta=1.0))


def mixture(method: LoRA | None, apart: float) -> Decoder:
    """A mixture of experts in bfloat16; apart: how far the logits of its experts lie apart, times as usual."""
    model = tuned("qwen3_moe", method)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("mlp.gate.weight"):
                weight.copy_(apart * weight + weight.mean(0) * 20)
    model.compute_dtype = torch.bfloat16
    return model


@pytest.mark.parametrize("method", [None, LoRA(rank=4)], ids=["full", "lora"])
def test_rounding_may_choose_other_experts(method: LoRA | None) -> None:
    assert [e["passed"] for e in shown(mixture(method, apart=0.02))] == [True] * CHECKS


def test_a_router_that_the_compute_type_gets_wrong_is_found() -> None:
    model, power = mixture(LORA, apart=3.0), 1.0

    def sharpened(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        chances, *rest = inputs
        return ((power * chances.log()).softmax(-1) if model.compute_dtype == torch.bfloat16 else chances, *rest)

    router = next(m for m in model.modules() if isinstance(m, TopExperts))
    router.register_forward_pre_hook(sharpened)
    shown(model)
    power = 3.0
    with pytest.raises(ProofError, match="the chances of the experts in bfloat16 are .* off the exact ones"):
        shown(model)


def test_a_sound_gradient_of_a_loss_that_bends_is_proven() -> None:
    """Attention that is nearly certain has hardly any gradient, and steps that change its loss are long."""
    model = tuned("llama", None)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_proj.weight" in name or "k_proj.weight" in name:
                weight.mul_(16)
    assert [e["passed"] for e in shown(model)] == [True] * CHECKS
    model.linears()["model.layers.1.self_attn.q_proj"].weight.register_hook(lambda grad: 1.1 * grad)
    with pytest.raises(ProofError, match=r"layers\.1\.self_attn\.q_proj\.weight: its gradient is .* off"):
        shown(model)


def test_an_expert_that_no_counted_token_chose_is_no_fault() -> None:
    """Behind the last layer only the tokens with a target have a gradient, and they may all choose the others."""
    data = packed(LENGTHS, Architecture.parts()["qwen3_moe"].TINY.vocab_size, answers=True)
    targets = np.full_like(data.targets, -1)
    targets[data.cu_seqlens[1:3] - 1] = data.targets[data.cu_seqlens[1:3] - 1]
    model = tuned("qwen3_moe", None)
    few = replace(data, targets=targets)
    assert [e["passed"] for e in shown(model, data=few)] == [True] * CHECKS
    hidden: list[Tensor] = []
    router = [m for m in model.modules() if isinstance(m, TopExperts)][-1]
    router.register_forward_hook(lambda _, __, out: hidden.append(out[1]))
    NextToken().batch_loss(model, few)
    ends = [int(end) - 1 for end in data.cu_seqlens[1:3]]
    chosen, number = set(hidden[-1][ends].flatten().tolist()), len(model.layers[-1].mlp.experts)  # type: ignore[arg-type]
    assert len(chosen) < number, "or this shows nothing"
    name = f"model.layers.{len(model.layers) - 1}.mlp.experts.{min(chosen)}.down_proj.weight"
    dict(model.named_parameters())[name].register_hook(torch.zeros_like)
    with pytest.raises(ProofError, match=rf"{name} gets a gradient of zero"):
        shown(model, data=few)
