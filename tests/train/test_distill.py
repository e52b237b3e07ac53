"""Distillation: divergences and gradients against the formulas, teachers, and the student's own words."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from settle.base.errors import DataError, ProofError
from settle.base.event_log import Events
from settle.base.registry import part, part_names
from settle.data.batches import Batch
from settle.data.likelihoods import LikelihoodsWriter, draws, sizes, summarise
from settle.evaluate.distillation import nearness
from settle.model.architectures.llama import Llama
from settle.model.decoder import Decoder
from settle.model.kv_cache import continued
from settle.model.layers.packed_sequences import Packing
from settle.train.evaluation import HeldOut, evaluate
from settle.train.objectives._divergence import Dense, LinearDivergence, Measure, Sparse
from settle.train.objectives.distill import Distill
from settle.train.objectives.next_token import NextToken
from settle.train.optimizers.adamw import AdamW
from settle.train.proof import Recipe, prove
from settle.train.teacher import LiveTeacher, RecordedTeacher, windows_of
from tests.records import into
from tests.train.source_rows import packed, source_rows
from tests.train.test_proof import CHECKS

N, WIDTH, WIDER, V = 37, 16, 24, 300


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def plain(log_p: Tensor, log_q: Tensor, kind: str, mixture: float) -> Tensor:
    """Sum over positions of the divergence, by its definition."""
    p, q = log_p.exp(), log_q.exp()
    if kind == "forward":
        return (p * (log_p - log_q)).sum()
    if kind == "reverse":
        return (q * (log_q - log_p)).sum()
    log_m = (mixture * p + (1 - mixture) * q).log()
    return mixture * (p * (log_p - log_m)).sum() + (1 - mixture) * (q * (log_q - log_m)).sum()


def capped(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else torch.tanh(logits / cap) * cap


@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
@pytest.mark.parametrize(
    ("temperature", "mixture", "text", "cap"), [(1.0, 0.5, 0.0, None), (2.0, 0.2, 0.3, None), (0.7, 0.9, 0.5, 3.0)]
)
def test_chunked_equals_plain(kind: str, temperature: float, mixture: float, text: float, cap: float | None) -> None:
    hidden, head = numbers(N, WIDTH).requires_grad_(), numbers(V, WIDTH, seed=1).requires_grad_()
    theirs, table = numbers(N, WIDER, seed=2), numbers(V, WIDER, seed=3, scale=0.5)
    targets = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(4))
    logits = capped(hidden @ head.T, cap)
    log_p = log_softmax(capped(theirs @ table.T, 5.0) / temperature, -1)
    apart = plain(log_p, log_softmax(logits / temperature, -1), kind, mixture) * temperature**2
    expected = (1 - text) * apart + text * torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    wanted = torch.autograd.grad(expected * 0.3, (hidden, head))
    measure, teaching = Measure(kind, temperature, mixture, text), Dense(theirs, table, 5.0)  # type: ignore[arg-type]
    for logits_at_once in (1, V, 5 * V, 1 << 20):
        loss = LinearDivergence.apply(hidden, head.detach(), head, targets, teaching, measure, logits_at_once, cap)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss * 0.3, (hidden, head)), wanted)


def test_many_rows_of_a_large_vocabulary_in_half_precision() -> None:
    """Several products, each cut in pieces, in bfloat16: near the exact sum, and no row is left out."""
    rows, vocab = 600, 20_000
    hidden, head = numbers(rows, WIDTH).requires_grad_(), numbers(vocab, WIDTH, seed=1)
    theirs = numbers(rows, WIDER, seed=2)
    table = numbers(vocab, WIDER, seed=3)
    targets = torch.zeros(rows, dtype=torch.int64)
    expected = plain(log_softmax(theirs @ table.T, -1), log_softmax(hidden @ head.T, -1), "forward", 0.5)
    (wanted,) = torch.autograd.grad(expected, hidden)
    half = [t.detach().bfloat16() for t in (hidden, head, theirs, table)]
    half[0].requires_grad_()
    loss = LinearDivergence.apply(half[0], half[1], half[1], targets, Dense(half[2], half[3]), Measure(), 1 << 17)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=0.02)
    (got,) = torch.autograd.grad(loss, half[0])
    assert float((got - wanted).norm() / wanted.norm()) < 0.05


def sparse(log_p: Tensor, top: int, drawn: int, seed: int = 0) -> Sparse:
    order = log_p.argsort(-1, descending=True)
    ids, others = order[:, :top], order[:, top:]
    tail = log_p.gather(1, others)
    random = torch.Generator().manual_seed(seed)
    chosen = others.gather(1, torch.multinomial(tail.exp(), drawn, True, generator=random))
    return Sparse(ids, log_p.gather(1, ids), chosen, log_p.gather(1, chosen), tail.logsumexp(-1))


def test_a_record_says_what_the_teacher_says() -> None:
    """With many draws the forward divergence and its gradient are the whole ones; with few, not biased."""
    hidden, head = numbers(6, WIDTH).requires_grad_(), numbers(V, WIDTH, seed=1)
    log_p = log_softmax(numbers(6, V, seed=2, scale=1.5), -1)
    targets = torch.zeros(6, dtype=torch.int64)
    whole = plain(log_p, log_softmax(hidden @ head.T, -1), "forward", 0.5)
    (wanted,) = torch.autograd.grad(whole, hidden)
    expected = float(whole.detach())

    def taught(record: Sparse) -> tuple[float, Tensor]:
        loss = LinearDivergence.apply(hidden, head, head, targets, record, Measure(), 1 << 20)
        return float(loss.detach()), torch.autograd.grad(loss, hidden)[0]

    many, gradient = taught(sparse(log_p, 8, 100_000))
    assert many == pytest.approx(expected, rel=5e-3)
    assert float((gradient - wanted).norm() / wanted.norm()) < 0.01
    few = [taught(sparse(log_p, 8, 4, seed)) for seed in range(400)]
    assert np.mean([loss for loss, _ in few]) == pytest.approx(expected, rel=0.02)
    mean = torch.stack([gradient for _, gradient in few]).mean(0)
    assert float((mean - wanted).norm() / wanted.norm()) < 0.06


@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
@pytest.mark.parametrize("drawn", [0, 4])
def test_gradients_of_a_record_are_those_of_its_loss(kind: str, drawn: int) -> None:
    hidden, head = numbers(5, WIDTH).requires_grad_(), numbers(40, WIDTH, seed=1)
    log_p = log_softmax(numbers(5, 40, seed=2, scale=1.5), -1)
    record = sparse(log_p, 7, 4)
    if not drawn:
        ids = torch.arange(40).expand(5, 40)
        record = Sparse(ids, log_p, ids[:, :0], log_p[:, :0], torch.full((5,), -80.0))
    targets = torch.zeros(5, dtype=torch.int64)

    def loss(hidden: Tensor) -> Tensor:
        out: Tensor = LinearDivergence.apply(hidden, head, head, targets, record, Measure(kind), 1 << 20)  # type: ignore[arg-type]
        return out

    assert torch.autograd.gradcheck(loss, (hidden,))
    whole = plain(log_p, log_softmax(hidden @ head.T, -1), kind, 0.5)
    if not drawn:
        torch.testing.assert_close(loss(hidden), whole)
    elif kind != "forward":
        assert 0 < float(loss(hidden).detach()) < float(whole.detach())


# --- the objective on a tiny model ---

LENGTHS = (20, 9, 33, 12)


def rows(vocab_size: int = Llama.TINY.vocab_size) -> Batch:
    """Rows whose second half is supervised, and one that is all text."""
    answers, whole = packed(LENGTHS, vocab_size, answers=True), packed(LENGTHS, vocab_size)
    answers.targets[-LENGTHS[-1] :] = whole.targets[-LENGTHS[-1] :]
    return answers


def frozen(seed: int = 7) -> Decoder:
    """A teacher with opinions of its own: first weights hold every token as likely as another."""
    model = Llama.TINY.build(seed)
    with torch.no_grad():
        model.head.mul_(10)
    model.freeze()
    return model


def objective(**settings: Any) -> Distill:
    made = Distill(**settings)
    return made.with_teacher(LiveTeacher(frozen(), made.layer_map))


@pytest.mark.parametrize("family", part_names("model/architectures"))
def test_loss_and_gradient_are_the_formulas(family: str) -> None:
    architecture: Any = part("model/architectures", family).TINY  # type: ignore[attr-defined]
    if not architecture.options().is_plain:
        pytest.skip("its layers share keys and values: their states are not asked for one by one")
    model, teacher = architecture.build(1), architecture.build(2)
    layers = list(range(len(architecture.options().layers)))
    distill = Distill(kind="js", text=0.25, hidden=0.5, layer_map=layers, temperature=1.5)
    data = rows(architecture.options().vocab_size)
    kept = torch.from_numpy(np.flatnonzero(data.targets >= 0))
    inputs, bounds = torch.from_numpy(data.inputs), torch.from_numpy(data.cu_seqlens)

    def logits_and_states(model: Decoder) -> tuple[Tensor, list[Tensor]]:
        packing, x, states = Packing(bounds), model.embed(inputs), []
        for number in layers:
            x = model.layer(number, x, packing)
            states.append(x[kept])
        return model.logits(model.model.norm(x)[kept]), states

    with torch.no_grad():
        theirs, their_states = logits_and_states(teacher)
    ours, states = logits_and_states(model)
    apart = plain((theirs / 1.5).log_softmax(-1), (ours / 1.5).log_softmax(-1), "js", 0.5) * 1.5**2
    text = torch.nn.functional.cross_entropy(ours, torch.from_numpy(data.targets)[kept], reduction="sum")
    far = sum((((a - b) ** 2).sum(-1) / (b**2).sum(-1)).sum() for a, b in zip(states, their_states, strict=True))
    expected = 0.75 * apart + 0.25 * text + 0.5 * far / len(layers)
    wanted = torch.autograd.grad(expected, list(model.trainable().values()))
    teacher.freeze()
    total, count = distill.with_teacher(LiveTeacher(teacher, layers)).batch_loss(model, data)
    assert count == len(kept)
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)
    total.backward()
    for (name, parameter), gradient in zip(model.trainable().items(), wanted, strict=True):
        assert float((parameter.grad - gradient).norm()) < 2e-3 * float(gradient.norm()) + 1e-5, name


SETTINGS: list[dict[str, Any]] = [
    {},
    {"kind": "reverse", "temperature": 2.0},
    {"kind": "js", "mixture": 0.1, "text": 0.5},
    {"hidden": 1.0, "layer_map": [1, 0]},
    {"on_policy": 1.0, "stops": [3]},
]


def recipe(model: Decoder, distill: Distill, data: Batch) -> Recipe:
    return Recipe(model, distill, AdamW(), data, source_rows(data), Llama.TINY.vocab_size, tuned=True)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s) or "plain")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_is_proven_before_its_first_step(settings: dict[str, Any], dtype: torch.dtype) -> None:
    model = Llama.TINY.build(1)
    model.compute_dtype = dtype
    events: list[dict[str, Any]] = []
    listening = Events(listeners=[into(events)])
    data = rows()
    prove(recipe(model, objective(**settings), data), listening)
    assert [e["passed"] for e in events] == [True] * CHECKS and "from the teacher, who pays" in events[1]["detail"]


def test_a_teacher_to_whom_the_rows_are_no_text_is_found() -> None:
    teacher = Llama.TINY.build(7)
    with torch.no_grad():
        teacher.head.mul_(60)
    teacher.freeze()
    distill = Distill().with_teacher(LiveTeacher(teacher))
    with pytest.raises(ProofError, match="the teacher finds these rows less likely than guessing"):
        data = rows()
        prove(recipe(Llama.TINY.build(1), distill, data), Events())


def test_a_student_comes_near() -> None:
    model, data, distill = Llama.TINY.build(1), rows(), objective(hidden=0.1, layer_map=[0, 1])
    stepper = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        stepper.zero_grad()
        total, count = distill.batch_loss(model, data)
        total.backward()
        stepper.step()
        losses.append(float(total.detach()) / count)
    assert losses[-1] < 0.3 * losses[0]
    near = nearness(model, distill, [data, data])
    far = nearness(Llama.TINY.build(1), distill, [data, data])
    assert (
        near.apart.kl.mean() < 0.3 * far.apart.kl.mean()
        and sum(near.stretches) == 2 * count
        and len(near.stretches) == 8
    )
    assert near.teacher == pytest.approx(far.teacher)


def test_several_teachers_are_the_mean_of_what_they_hold_likely() -> None:
    """A teacher twice is that teacher once; two that differ pay less for a target than they do on average."""
    data, (one, other) = rows(), (frozen(7), frozen(8))
    model = Llama.TINY.build(1)

    def learned_from(*teachers: Decoder) -> tuple[float, float]:
        distill = Distill(temperature=2.0).with_teacher(LiveTeacher(teachers[0], (), teachers[1:]))
        known = distill.reference(model, data)
        assert known
        return float(distill.batch_loss(model, data)[0].detach()), known[0]

    assert learned_from(one, one) == pytest.approx(learned_from(one), rel=1e-5)
    kept = torch.from_numpy(np.flatnonzero(data.targets >= 0))
    bounds, targets = torch.from_numpy(data.cu_seqlens), torch.from_numpy(data.targets)[kept].unsqueeze(1)
    with torch.no_grad():
        said = [m.logits(m(torch.from_numpy(data.inputs), bounds)[kept]).softmax(-1) for m in (one, other)]
    paid = -float(((said[0] + said[1]) / 2).gather(1, targets).log().sum())
    assert learned_from(one, other)[1] == pytest.approx(paid, rel=1e-5)
    assert paid < (learned_from(one)[1] + learned_from(other)[1]) / 2
    near = nearness(model, Distill().with_teacher(LiveTeacher(one, (), [other])), [data])
    assert float(-near.teacher.sum()) == pytest.approx(paid, rel=1e-5)


def test_a_student_of_a_text_can_be_evaluated_by_its_next_tokens() -> None:
    model, held_out = Llama.TINY.build(1), HeldOut([rows()], np.ones(Llama.TINY.vocab_size, int))
    by_text = evaluate(model, objective(evaluate_text=True), held_out, 0, 0)
    assert by_text == evaluate(model, NextToken(), held_out, 0, 0) and by_text.bits_per_byte
    assert evaluate(model, objective(), held_out, 0, 0).bits_per_byte is None


# --- what was said, and own words ---


def recorded(teacher: Decoder, data: Batch, folder: Path, top: int = 128, sampled: int = 32) -> RecordedTeacher:
    bounds = data.cu_seqlens.tolist()
    with LikelihoodsWriter(folder, Llama.TINY.vocab_size, {}, 0, top, sampled) as writer:
        for window, (a, b) in zip(windows_of(data), zip(bounds, bounds[1:], strict=False), strict=True):
            with torch.no_grad():
                hidden = teacher(torch.from_numpy(data.inputs[a:b]), torch.tensor([0, b - a], dtype=torch.int32))
                logits = teacher.logits(hidden).numpy()
            _, drawn = sizes(Llama.TINY.vocab_size, top, sampled)
            writer.append(window, summarise(logits, window[1:], draws(window, drawn), writer.top))
        writer.close()
    return RecordedTeacher.open(folder)


def test_a_record_teaches_as_its_teacher_does(tmp_path: Path) -> None:
    """All of the vocabulary kept: the same loss, gradient and figures but for the rounding of what is kept."""
    data, teacher = rows(), frozen()
    record = recorded(teacher, data, tmp_path / "all", Llama.TINY.vocab_size, 0)
    gradients: list[tuple[float, Tensor]] = []
    paid = Distill().with_teacher(LiveTeacher(teacher)).reference(Llama.TINY.build(1), data)[0]
    for one in (Distill().with_teacher(LiveTeacher(teacher)), Distill(record="x").with_teacher(record)):
        model = Llama.TINY.build(1)
        total, count = one.batch_loss(model, data)
        total.backward()
        gradients.append((float(total.detach()) / count, torch.cat([p.grad.flatten() for p in model.parameters()])))
        assert one.reference(model, data)[0] == pytest.approx(paid, rel=1e-4)
        near = nearness(model, one, [data])
        assert near.apart.kl.mean() == pytest.approx(gradients[0][0], rel=1e-2)
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-3)
    assert float((gradients[0][1] - gradients[1][1]).norm() / gradients[0][1].norm()) < 1e-2


def test_a_record_is_proven_and_knows_only_its_rows(tmp_path: Path) -> None:
    data = rows()
    distill = Distill(record="x").with_teacher(recorded(frozen(), data, tmp_path / "some", 24, 8))
    prove(recipe(Llama.TINY.build(1), distill, data), Events())
    other = Batch(data.inputs[::-1].copy(), data.targets, data.cu_seqlens, data.positions)
    with pytest.raises(DataError, match="does not have a row of"):
        distill.batch_loss(Llama.TINY.build(1), other)


def test_own_words_come_from_the_seed_and_keep_to_the_rows() -> None:
    distill, model, data = objective(on_policy=1.0, stops=[5]), Llama.TINY.build(1), rows()
    inputs, bounds = torch.from_numpy(data.inputs), torch.from_numpy(data.cu_seqlens)
    targets = torch.from_numpy(data.targets)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(distill.own_words(model, inputs, targets, bounds))
    for one, other in zip(drawn[0], drawn[1], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(drawn[0][1], drawn[2][1])
    said, aims, edges = drawn[0]
    assert (edges.diff() <= bounds.diff()).all() and len(said) == len(aims) == int(edges[-1])
    for i in range(len(LENGTHS)):
        row, aim = said[edges[i] : edges[i + 1]], aims[edges[i] : edges[i + 1]]
        asked = LENGTHS[i] // 2 + 1 if i < 3 else LENGTHS[i] // 4 + 1
        start = int(bounds[i])
        assert torch.equal(row[:asked], inputs[start : start + asked])
        assert (aim[: asked - 1] == -1).all() and torch.equal(aim[asked - 1 : -1], row[asked:])
        ends = (aim == 5).nonzero()
        assert len(ends) == 0 or int(ends[0]) == len(aim) - 1


def test_own_words_are_learned_in_training_alone() -> None:
    distill, model, data = objective(on_policy=1.0), Llama.TINY.build(1), rows()
    with torch.no_grad():
        looked = float(distill.batch_loss(model, data)[0])
    model.eval()
    assert float(distill.batch_loss(model, data)[0].detach()) == pytest.approx(looked, rel=1e-5)
    model.train()
    torch.manual_seed(0)
    assert float(distill.batch_loss(model, data)[0].detach()) != pytest.approx(looked, rel=1e-3)


@pytest.mark.parametrize("family", part_names("model/architectures"))
def test_sequences_grow_as_they_would_be_read(family: str) -> None:
    model = part("model/architectures", family).TINY.build(1)  # type: ignore[attr-defined]
    random = torch.Generator().manual_seed(0)
    prompts = [torch.randint(0, model.options.vocab_size, (n,), generator=random) for n in (3, 7, 1, 12)]
    for prompt, said in zip(prompts, continued(model, prompts, [9, 4, 0, 9], [], 0.0), strict=True):
        ids, wanted = prompt.tolist(), []
        for _ in range(len(said)):
            hidden = model(torch.tensor(ids), torch.tensor([0, len(ids)], dtype=torch.int32))
            wanted.append(int(model.logits(hidden[-1:]).argmax()))
            ids.append(wanted[-1])
        assert said.tolist() == wanted
