"""Every check of the proof fails when what it checks is wrong, and says where."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from settle.base.errors import ProofError
from settle.base.event_log import Events
from settle.data.batches import Batch
from settle.model.architectures.llama import Llama
from settle.model.families import families
from settle.train.objectives.next_token import NextToken
from settle.train.optimizers.adamw import AdamW
from settle.train.optimizers.muon import Muon
from settle.train.proof import Recipe, prove, shorten
from settle.train.proof.source import SourceRow
from tests.records import into
from tests.train.source_rows import packed, source_rows

VOCAB = Llama.TINY.vocab_size
CHECKS = 9


def batch(lengths: tuple[int, ...] = (20, 7, 33, 12)) -> Batch:
    return packed(lengths, VOCAB)


def shown(
    model: nn.Module, objective: Any = None, data: Batch | None = None, rows: list[SourceRow] | None = None
) -> list[dict[str, Any]]:
    """The events of a proof. rows: what the segments of the batch have to be, when it is not what they are."""
    events: list[dict[str, Any]] = []
    data = data or batch()
    rows = rows or source_rows(data, "a.txt")
    try:
        prove(Recipe(model, objective or NextToken(), AdamW(), data, rows, VOCAB), Events(listeners=[into(events)]))
    finally:
        assert all(p.grad is None for p in model.parameters())
    return events


def test_a_right_recipe_is_proven_and_left_as_it_was() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = Llama.TINY.build(seed=1)
        model.compute_dtype = dtype
        before = {k: v.clone() for k, v in model.state_dict().items()}
        events = shown(model)
        assert len(events) == CHECKS and all(e["passed"] for e in events)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("family", families().values(), ids=lambda family: family.model_type)
def test_a_small_model_of_every_family_is_proven_and_has_all_that_its_files_hold(family: Any) -> None:
    """Of the shape that a small budget gives: one head, few layers; by the optimizer of `settle train`."""
    part = family.sized(60_000, VOCAB, 128)
    model, data = part.build(seed=1), batch()
    prove(Recipe(model, NextToken(), Muon(), data, source_rows(data, "a.txt"), VOCAB), Events())
    held = {**model.trainable(), **model.constants()}
    assert held.keys() == part.parameters().keys()
    model.load_trainable({name: torch.zeros_like(value) for name, value in held.items()})
    assert not any(value.any() for value in held.values())


class WrongBackward(torch.autograd.Function):
    """The identity, whose backward multiplies the gradient by `factor`, or turns it by rows and keeps its length."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float, turned: int = 0) -> Tensor:
        ctx.factor, ctx.turned = factor, turned
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0].roll(ctx.turned, 0) * ctx.factor, None, None


@pytest.mark.parametrize("wrong", [(1.001, 0), (1.0, 1)], ids=["scale", "angle"])
def test_a_wrong_backward_is_found(wrong: tuple[float, int]) -> None:
    model = Llama.TINY.shortened(1).build(seed=1)
    model.model.norm.register_forward_hook(lambda module, args, out: WrongBackward.apply(out, *wrong))
    with pytest.raises(ProofError, match=r"(\w+\.)+weight: .* off"):
        shown(model)


def test_a_wrong_gradient_of_one_tensor_is_named() -> None:
    class Loss(NextToken):
        def loss(self, model: Any, *args: Tensor) -> tuple[Tensor, int]:
            wrong = model.model.layers[1].mlp.down_proj.weight
            total, count = super().loss(model, *args)
            return total + 0.002 * _only_gradient(wrong, total), count

    with pytest.raises(ProofError, match=r"layers\.1\.mlp\.down_proj\.weight"):
        shown(Llama.TINY.build(seed=1), Loss())


def _only_gradient(weight: Tensor, total: Tensor) -> Tensor:
    """Zero, with a gradient in `weight` alone."""
    if not torch.is_grad_enabled():
        return total.detach() * 0
    return (weight - weight.detach()).sum() * 0.5


def make_leaking(model: nn.Module) -> None:
    """From now on the third segment sees the second."""
    forward = type(model).forward

    class Leaking(type(model)):  # type: ignore[misc]
        def forward(self, inputs: Tensor, cu_seqlens: Tensor) -> Tensor:
            joined = torch.cat([cu_seqlens[:2], cu_seqlens[3:]]) if len(cu_seqlens) > 3 else cu_seqlens
            return forward(self, inputs, joined)

    model.__class__ = Leaking


def test_attention_across_documents_is_found_with_its_row() -> None:
    model = Llama.TINY.build(seed=1)
    make_leaking(model)
    with pytest.raises(ProofError, match=r"row 2 \(a\.txt:2\)|row 1 \(a\.txt:1\)"):
        shown(model)


def test_a_frozen_tensor_is_named() -> None:
    model = Llama.TINY.build(seed=1)
    model.model.layers[0].self_attn.k_proj.weight.requires_grad_(False)
    with pytest.raises(ProofError, match=r"layers\.0\.self_attn\.k_proj\.weight is frozen"):
        shown(model)


def test_a_tensor_that_nothing_depends_on_is_named() -> None:
    model = Llama.TINY.build(seed=1)
    model.register_parameter("spare", nn.Parameter(torch.zeros(3)))
    with pytest.raises(ProofError, match="spare gets no finite gradient"):
        shown(model)


class Mean(NextToken):
    """A mean where a sum belongs, the classical mistake of accumulation: right only for a batch of 27 targets."""

    def loss(self, model: Any, *args: Tensor) -> tuple[Tensor, int]:
        total, count = super().loss(model, *args)
        return total * (27 / count), count


def test_wrong_accumulation_is_found() -> None:
    with pytest.raises(ProofError, match="row by row"):
        shown(Llama.TINY.build(seed=1), Mean(), batch((20, 7)))


def test_wrong_first_weights_are_found() -> None:
    model = Llama.TINY.build(seed=1)
    with torch.no_grad():
        model.head.mul_(60)
    with pytest.raises(ProofError, match=r"the first loss is .* ln\(64\)"):
        shown(model)


def test_a_batch_without_targets_is_named_by_its_rows() -> None:
    empty = batch()
    empty.targets[:] = -1
    with pytest.raises(ProofError, match="nothing to learn from: a.txt:0; a.txt:1"):
        shown(Llama.TINY.build(seed=1), None, empty)


def test_a_compute_type_that_does_not_carry_the_gradient_is_found() -> None:
    class Coarse(NextToken):
        def loss(self, model: Any, *args: Tensor) -> tuple[Tensor, int]:
            total, count = super().loss(model, *args)
            if model.head.dtype == torch.float32:  # what a broken kernel of the machine would do
                total = total + 0.05 * (model.head * model.head).sum() - 0.05 * (model.head * model.head).sum().detach()
            return total, count

    with pytest.raises(ProofError, match=r"lm_head\.weight: its gradient in float32 is"):
        shown(Llama.TINY.build(seed=1), Coarse())


def test_the_part_that_is_computed_exactly_has_two_rows_at_least() -> None:
    assert len(shorten(batch((72,)), 40, 6).cu_seqlens) == 3
    many = shorten(batch((3,) * 24), 40, 6)
    assert len(many.cu_seqlens) == 7 and len(many.inputs) == 18
