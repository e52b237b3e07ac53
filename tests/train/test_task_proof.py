"""The proof is of the task: what a token sees, what it is to predict, and that a step helps. Each fault is refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from settle.base.errors import ProofError
from settle.base.event_log import Events
from settle.model.adapters.lora import LoRA
from settle.model.architectures.gemma2 import Gemma2
from settle.model.architectures.llama import Llama
from settle.model.layers.packed_sequences import RotationTable
from settle.train.objectives.next_token import NextToken
from settle.train.optimizers.adamw import AdamStepper, AdamW
from settle.train.optimizers.muon import Muon
from settle.train.proof import Recipe, prove
from settle.train.proof.compute_type import EmulatedRounding, RoundingError
from settle.train.proof.definition import _Watched, require_attention, require_causal
from settle.train.proof.source import require_targets
from tests.train.source_rows import source_rows
from tests.train.test_proof import VOCAB, batch


def test_borders_are_the_documents_and_not_the_batch_s() -> None:
    data = batch()
    rows = source_rows(data, "a.txt")
    joined = replace(data, cu_seqlens=data.cu_seqlens[[0, -1]])
    with pytest.raises(ProofError, match=r"a\.txt:0 ends at token 20 of the batch, and a segment of the batch at 72"):
        require_targets(joined, rows)
    late = replace(data, cu_seqlens=data.cu_seqlens + np.array([0, 0, 1, 0, 0], np.int32))
    with pytest.raises(ProofError, match=r"a\.txt:1 ends at token 27"):
        require_targets(late, rows)
    short = [replace(rows[0], document=rows[0].document[:-1]), *rows[1:]]
    with pytest.raises(ProofError, match=r"tokens 0 to 20 of a\.txt:0 are in the batch, and it has 19"):
        require_targets(data, short)
    with pytest.raises(ProofError, match=r"does not hold the tokens of a\.txt:2"):
        require_targets(data, [*rows[:2], replace(rows[2], before=(rows[2].before + 1) % VOCAB), rows[3]])


def mask_from(diagonal: int) -> Callable[..., Tensor]:
    def mask(table: RotationTable, length: int, group: int, dtype: torch.dtype, window: int | None = None) -> Tensor:
        return torch.full((length, length), -torch.inf, dtype=dtype).triu(diagonal).repeat(group, 1)

    return mask


@pytest.mark.parametrize(("diagonal", "ahead"), [(2, "[12]"), (10_000, r"\d+")], ids=["one token", "no mask"])
def test_a_token_that_is_seen_ahead_of_its_time_is_found(
    monkeypatch: pytest.MonkeyPatch, diagonal: int, ahead: str
) -> None:
    data, model = batch(), Llama.TINY.build(seed=1)
    assert require_causal(model, data, source_rows(data)) == "4 documents"
    monkeypatch.setattr(RotationTable, "mask", mask_from(diagonal))
    with pytest.raises(ProofError, match=rf"row \d \(.*\): an output changes with a token that comes {ahead} later"):
        require_causal(Llama.TINY.build(seed=1), data, source_rows(data))


def test_attention_that_sees_nothing_but_its_own_token_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def own_only(
        table: RotationTable, length: int, group: int, dtype: torch.dtype, window: int | None = None
    ) -> Tensor:
        return torch.full((length, length), -torch.inf, dtype=dtype).fill_diagonal_(0).repeat(group, 1)

    monkeypatch.setattr(RotationTable, "mask", own_only)
    with pytest.raises(ProofError, match="no output depends on the tokens before its own"):
        require_causal(Llama.TINY.build(seed=1), batch(), [])


@pytest.mark.parametrize(("factor", "says"), [(0.0, "layer 0: the order of the tokens does not matter"),
                                              (7.0, r"layer 0: its attention is .* off its definition")])  # fmt: skip
def test_positions_are_what_the_options_say(monkeypatch: pytest.MonkeyPatch, factor: float, says: str) -> None:
    angles = RotationTable.angles
    monkeypatch.setattr(RotationTable, "angles", lambda table, length: angles(table, length) * factor)
    with pytest.raises(ProofError, match=says):
        require_attention(Llama.TINY.build(seed=1), batch())


@pytest.mark.parametrize("lengths", [(9, 30), (30, 9), (40, 50)])
@pytest.mark.parametrize("family", [Llama, Gemma2])
def test_lost_positions_are_found_wherever_the_longest_document_lies(
    monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...], family: Any
) -> None:
    """And in every layer, those with a window too: the order is turned of what the last token sees and of no more."""
    angles = RotationTable.angles
    model = family.TINY.build(seed=1)
    if family is Gemma2:
        assert 2 < min(layer.options.window or 99 for layer in model.layers) < 30
    seen = require_attention(model, batch(lengths))
    assert seen.startswith(f"{len(model.layers)} layers")
    monkeypatch.setattr(RotationTable, "angles", lambda table, length: angles(table, length) * 0.0)
    edges = torch.from_numpy(batch(lengths).cu_seqlens)
    watched = _Watched(edges, [layer.options for layer in model.layers])
    model = family.TINY.build(seed=1)
    with torch.no_grad():
        model(torch.from_numpy(batch(lengths).inputs), watched)
    assert watched.still == list(range(len(model.layers)))


def test_a_lost_window_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    data = batch((40, 9))
    model = Gemma2.TINY.build(seed=1)
    assert min(layer.options.window or 99 for layer in model.layers) < 40
    require_attention(model, data)
    monkeypatch.setattr(RotationTable, "mask", mask_from(1))
    with pytest.raises(
        ProofError, match=r"its attention is .* off its definition \(mask, window, rotation, scale, cap\)"
    ):
        require_attention(Gemma2.TINY.build(seed=1), data)


class WrongInHalf(torch.autograd.Function):
    """The identity, whose backward in bfloat16 is too long, or noisy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float, noise: float) -> Tensor:
        ctx.wrong, ctx.factor, ctx.noise = x.dtype == torch.bfloat16, factor, noise
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        if ctx.wrong:
            noise = torch.randn(grad.shape, generator=torch.Generator().manual_seed(0)).to(grad.dtype)
            grad = grad * ctx.factor + noise * (ctx.noise * grad.norm() / noise.norm())
        return grad, None, None


@pytest.mark.parametrize(("factor", "noise"), [(0.75, 0.0), (1.1, 0.0), (1.25, 0.0), (1.0, 0.25), (1.0, 0.0)])
@pytest.mark.parametrize("tuned", [False, True], ids=["scratch", "lora"])
def test_a_gradient_in_bfloat16_is_off_by_its_rounding_alone(tuned: bool, factor: float, noise: float) -> None:
    data, model = batch(), Llama.TINY.build(seed=1)
    if tuned:
        LoRA(rank=4).apply(model, seed=2)
    model.compute_dtype = torch.bfloat16
    model.model.norm.register_forward_hook(lambda module, args, out: WrongInHalf.apply(out, factor, noise))
    recipe = Recipe(model, NextToken(), AdamW(), data, source_rows(data), VOCAB, tuned=tuned)
    if factor == 1.0 and noise == 0.0:
        assert len(prove(recipe, Events())) == 9
        return
    with pytest.raises(RoundingError, match="in bfloat16 is .* and its rounding explains"):
        prove(recipe, Events())


def test_emulated_rounding_is_that_of_a_layer() -> None:
    """Of products their operands and their result; of what is between them the result, but for logits and losses."""
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 32, 32, generator=random, dtype=torch.float64)
    with EmulatedRounding(torch.bfloat16, 64):
        product, total, share = a @ b, a + b, torch.softmax(a, -1)
    assert torch.equal(product, (a.bfloat16().double() @ b.bfloat16().double()).bfloat16().double())
    assert torch.equal(total, (a + b).bfloat16().double()) and torch.equal(share, torch.softmax(a, -1))
    with EmulatedRounding(torch.bfloat16, 32):
        total, loss = a + b, a[0] + b[0]
    assert torch.equal(total, a + b) and torch.equal(loss, a[0] + b[0])


@pytest.mark.parametrize("optimizer", [AdamW(), Muon()], ids=["adamw", "muon"])
def test_a_step_that_goes_uphill_is_found(monkeypatch: pytest.MonkeyPatch, optimizer: Any) -> None:
    data = batch()
    recipe = Recipe(Llama.TINY.build(seed=1), NextToken(), optimizer, data, source_rows(data), VOCAB, rate=0.1)
    step = AdamStepper.step
    monkeypatch.setattr(AdamStepper, "step", lambda stepper, scale: step(stepper, -20 * scale))
    with pytest.raises(ProofError, match="a step of the optimizer goes up the gradient"):
        prove(recipe, Events())
