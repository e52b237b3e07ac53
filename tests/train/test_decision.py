"""Decisions: the loss and its gradient against the formula, and an option that is not there."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from settle.data.batches import Batch
from settle.data.decisions.calibration import divergences, fit_temperature, probabilities
from settle.data.store import RowStore, RowWriter
from settle.model.adapters.lora import LoRA
from settle.model.architectures.llama import Llama
from settle.model.decoder import Decoder
from settle.train.objectives.decision import FULL_LEAD_NATS, Decision, label_scale
from settle.train.proof import between, row_by_row, tails
from tests.train.source_rows import decisions, packed

LENGTHS, LABELS = (9, 12, 7), [5, 9, 2]
SHARES = np.array([[0.75, 0.25, 0.0], [0.0, 1.0, -1.0], [0.2, 0.3, 0.5]], np.float32)


def decided() -> Batch:
    return decisions(packed(LENGTHS, Llama.TINY.vocab_size, seed=4), LABELS, SHARES)


def adapted() -> Decoder:
    model = Llama.TINY.build(seed=1)
    LoRA(rank=3).apply(model, seed=2)
    with torch.no_grad():
        for p in model.trainable().values():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(3)), alpha=0.05)
    return model


def by_hand(model: Decoder, data: Batch, number: int) -> torch.Tensor:
    """KL of one decision, its row alone through the model."""
    a, b = data.cu_seqlens[number : number + 2]
    hidden = model(torch.from_numpy(data.inputs[a:b]), torch.tensor([0, b - a], dtype=torch.int32))[-1]
    count = int((SHARES[number] >= 0).sum())
    log_q = torch.log_softmax((hidden @ model.head.T)[LABELS[:count]], -1)
    p = torch.from_numpy(SHARES[number, :count])
    return (torch.xlogy(p, p) - p * log_q).sum()


def test_loss_and_gradient_are_the_formulas() -> None:
    data, model, objective = decided(), adapted(), Decision(labels=LABELS)
    expected = by_hand(model, data, 0) + by_hand(model, data, 1) + by_hand(model, data, 2)
    wanted = torch.autograd.grad(expected, list(model.trainable().values()))
    total, count = objective.batch_loss(model, data)
    found = torch.autograd.grad(total, list(model.trainable().values()))
    assert (count, objective.count(data)) == (3, 3)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)


def test_parts_of_a_batch_keep_their_targets() -> None:
    data, model, objective = decided(), adapted(), Decision(labels=LABELS)
    whole = objective.batch_loss(model, data)[0].item()
    apart = [objective.batch_loss(model, part)[0].item() for part in row_by_row(data, 1)]
    assert sum(apart) == pytest.approx(whole, rel=1e-5)
    assert objective.batch_loss(model, between(data, data.cu_seqlens[1:]))[0].item() == pytest.approx(
        sum(apart[1:]), rel=1e-5
    )
    assert tails(data, 12, 2).shares.tolist() == SHARES[:2].tolist()


def test_without_shares_the_last_target_is_right_of_all_labels() -> None:
    data, model, objective = decided(), adapted(), Decision(labels=LABELS)
    hard = Batch(data.inputs, data.targets, data.cu_seqlens, data.positions)
    sure = np.eye(3, dtype=np.float32)[SHARES.argmax(1)]
    same = Batch(data.inputs, data.targets, data.cu_seqlens, data.positions, shares=sure)
    assert objective.batch_loss(model, hard)[0].item() == pytest.approx(objective.batch_loss(model, same)[0].item())


def test_every_weight_gets_a_gradient_the_output_table_too() -> None:
    data, model = decided(), Llama.TINY.build(seed=1)
    Decision(labels=LABELS).batch_loss(model, data)[0].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_held_out_rows_are_judged_at_the_temperature_that_suits_them() -> None:
    data, model, objective = decided(), adapted(), Decision(labels=LABELS)
    narrow = replace(between(data, data.cu_seqlens[:3]), shares=SHARES[:2, :2])  # a batch with fewer options
    with torch.no_grad():
        scores = objective.scores(
            model, torch.from_numpy(data.inputs), torch.from_numpy(data.cu_seqlens), torch.from_numpy(SHARES)
        )
        losses = objective.held_out_losses(model, [data, narrow])
        rows = np.vstack([scores.double().numpy()] * 2)[:5]
        rows[3:, 2] = -np.inf
        wanted = np.maximum(np.vstack([SHARES, SHARES[:2]]), 0).astype(float)
        heat = fit_temperature(rows, wanted)
        expected = divergences(probabilities(rows, heat), wanted)
    assert [count for _, count in losses] == [3, 2] and heat != pytest.approx(1, abs=0.01)
    assert [total for total, _ in losses] == pytest.approx([expected[:3].sum(), expected[3:].sum()], rel=1e-4)
    # thirty times as sure and as right: the same loss but for the prior, where the loss itself is far higher
    surer = type("Surer", (Decision,), {"scores": lambda self, *args: 30 * Decision.scores(self, *args)})(labels=LABELS)
    with torch.no_grad():
        before, after = (one.batch_loss(model, data)[0].item() for one in (objective, surer))
        calm = [sum(total for total, _ in one.held_out_losses(model, [data] * 100)) for one in (objective, surer)]
    assert abs(calm[1] / calm[0] - 1) < 0.2 * abs(after / before - 1)


@pytest.mark.parametrize(
    ("train", "held_out", "floor"),
    [
        # three of four rows are right with the first label: smoothed by one, 4 and 2 of 6
        ([[1, 0]] * 3 + [[0, 1]], [[1, 0], [0, 1]], -(math.log(4 / 6) + math.log(2 / 6)) / 2),
        # shuffled options say nothing by their place, and rows with fewer of them are counted apart
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, -1], [0, 1, -1]], [[0, 1, 0], [1, 0, -1]], math.log(6) / 2),
        # what is shared is nothing that can be known better
        ([[0.5, 0.5]] * 4, [[0.5, 0.5]], 0.0),
    ],
)
def test_the_floor_is_that_of_the_labels_and_not_of_the_text(
    tmp_path: Path, train: list[list[float]], held_out: list[list[float]], floor: float
) -> None:
    writer = RowWriter(tmp_path / "rows", 0, np.uint16)
    for number in range(len(train)):
        writer.add(np.arange(6), np.array([0, 0, 0, 0, 0, 1]), (0, number, number), 6)
    writer.close()
    np.array(train, "<f4").tofile(tmp_path / "rows" / "shares.bin")
    batch = replace(decided(), shares=np.array(held_out, np.float32))
    found = Decision(labels=LABELS).frequency_loss(RowStore(tmp_path / "rows"), [batch], Llama.TINY.vocab_size)
    assert found == pytest.approx(floor, rel=1e-6, abs=1e-6)


def test_labels_that_a_base_hardly_tells_apart_are_learned_at_a_scale() -> None:
    model = adapted()
    with torch.no_grad():
        table, norm = model.head, model.model.norm.weight
        rows = table[LABELS] * norm
        leads = [(rows[i] - rows[j]).norm().item() * math.sqrt(rows.shape[1]) for i, j in ((0, 1), (0, 2), (1, 2))]
        scale = sorted(leads)[1] / FULL_LEAD_NATS
        # no hidden state gives a pair more than its lead
        hidden = model(torch.arange(30) % 7, torch.tensor([0, 30], dtype=torch.int32))
        assert (hidden @ (table[LABELS[0]] - table[LABELS[1]])).abs().max() <= leads[0] * 1.001
        assert 0 < scale < 1 and label_scale(model, LABELS) == pytest.approx(scale, rel=1e-5)
        table.mul_(1.1 / scale)
        assert label_scale(model, LABELS) == 1.0  # which letters of a trained model have
        assert label_scale(model, LABELS[:1]) == 1.0
    model, data = adapted(), decided()
    prepared = Decision(labels=LABELS).prepared(model)
    assert prepared.scale == pytest.approx(scale, rel=1e-5)
    assert Decision(labels=LABELS, scale=0.5).prepared(model).scale == 0.5
    with torch.no_grad():
        surer = type("Surer", (Decision,), {"scores": lambda self, *a: Decision.scores(self, *a) / scale})(
            labels=LABELS
        )
        for losses in ("held_out_losses", "batch_loss"):
            (own, other) = (getattr(o, losses)(model, [data] if "out" in losses else data) for o in (prepared, surer))
            first = [float(torch.as_tensor(v[0][0] if "out" in losses else v[0])) for v in (own, other)]
            assert first[0] == pytest.approx(first[1], rel=1e-4)
