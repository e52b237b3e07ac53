"""Each objective's loss is its published formula; a loss that is not, or a step at another rate, ends the run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from settle.base.errors import ProofError
from settle.base.event_log import Events
from settle.base.registry import part, part_names
from settle.data.batches import Batch
from settle.formats.gguf import read_gguf
from settle.library.pull.encoder_gguf import encoder_to_gguf
from settle.model.adapters.lora import LoRA
from settle.model.architectures.llama import Llama
from settle.model.decoder import Decoder
from settle.model.encoder import Reranker, encoder_of_gguf
from settle.train.objectives import Objective
from settle.train.objectives.contrastive import Contrastive
from settle.train.objectives.decision import Decision
from settle.train.objectives.distill import Distill
from settle.train.objectives.dpo import DPO
from settle.train.objectives.next_token import NextToken
from settle.train.objectives.rank import Rank
from settle.train.optimizers.adamw import AdamStepper, AdamW
from settle.train.optimizers.muon import Muon, MuonStepper
from settle.train.proof import Recipe, prove
from settle.train.proof.definition import require_definition, require_rate, require_tied
from settle.train.teacher import LiveTeacher
from tests.bert import tiny_bert
from tests.train.source_rows import decisions, packed, source_rows
from tests.train.test_distill import recorded

LENGTHS, LABELS = (11, 8, 14, 9), [5, 9, 2, 17]
V = Llama.TINY.vocab_size
SHARES = np.array([[0.5, 0.25, 0.25, 0], [1, 0, -1, -1], [0, 0.5, 0.5, -1], [0.1, 0.2, 0.3, 0.4]], np.float32)


def rows(vocab_size: int = V) -> Batch:
    return packed(LENGTHS, vocab_size, seed=5, answers=True)


def decided() -> Batch:
    return decisions(rows(), LABELS, SHARES)


def moved(family: str = "llama", adapted: bool = True, seed: int = 1) -> Decoder:
    """A model whose adapter, or every weight, is not where it began."""
    model: Decoder = part("model/architectures", family).TINY.build(seed)  # type: ignore[attr-defined]
    if adapted:
        LoRA(rank=4, dropout=0.0).apply(model, seed=seed + 1)
    with torch.no_grad():
        for number, p in enumerate(model.trainable().values()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(number)), alpha=0.05)
    return model


def taught(teachers: int = 1, **settings: Any) -> Distill:
    first, *others = (moved(adapted=False, seed=9 + number) for number in range(teachers))
    for teacher in (first, *others):
        teacher.freeze()
    return Distill(**settings).with_teacher(LiveTeacher(first, settings.get("layer_map", ()), others))


CASES: dict[str, tuple[Callable[[], Objective], Callable[[], Batch]]] = {
    "next token": (NextToken, rows),
    "preferences": (lambda: DPO(beta=0.7), rows),
    "decisions": (lambda: Decision(labels=LABELS, scale=0.4), decided),
    "decisions without shares": (lambda: Decision(labels=LABELS), lambda: replace(decided(), shares=None)),
    "forward": (lambda: taught(text=0.3), rows),
    "reverse": (lambda: taught(kind="reverse", temperature=2.0), rows),
    "js": (lambda: taught(kind="js", mixture=0.2, temperature=0.5), rows),
    "members": (lambda: taught(3, text=0.2, temperature=1.5), rows),
    "layers": (lambda: taught(hidden=0.4, layer_map=[1, 0]), rows),
}


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_the_formula(name: str) -> None:
    objective, data = CASES[name][0](), CASES[name][1]()
    assert "nats" in require_definition(moved(), objective, data)
    exact = moved().double()
    exact.compute_dtype = torch.float64
    if not isinstance(objective, Distill):  # its teacher is in float32
        assert "nats" in require_definition(exact, objective, data)


@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
def test_the_loss_of_a_record_is_the_formula(kind: str, tmp_path: Path) -> None:
    data = rows()
    teacher = recorded(Llama.TINY.build(9), data, tmp_path / "record", 6, 4)  # most of it is in what was drawn
    objective = Distill(kind=kind, text=0.25).with_teacher(teacher)  # type: ignore[arg-type]
    assert "nats" in require_definition(moved(), objective, data)
    with pytest.raises(ProofError, match="distill: its loss is"):
        other = objective.model_copy(update={"text": 0.5})
        other._teacher = objective.loaded_teacher
        require_definition(moved(), Wrong(objective, other), data)


class Wrong:
    """An objective that computes another one's loss."""

    def __init__(self, stated: Objective, computed: Objective) -> None:
        self.part_name, self.count, self.by_definition = stated.part_name, stated.count, stated.by_definition
        self.batch_loss = computed.batch_loss


@pytest.mark.parametrize(
    ("stated", "computed", "data"),
    [
        (DPO(beta=0.7), DPO(beta=0.6), rows()),
        (Decision(labels=LABELS, scale=0.4), Decision(labels=LABELS, scale=0.5), decided()),
        (Decision(labels=LABELS), Decision(labels=LABELS[::-1]), decided()),
    ],
)
def test_another_loss_is_refused(stated: Objective, computed: Objective, data: Batch) -> None:
    with pytest.raises(ProofError, match="its loss is .* by its definition"):
        require_definition(moved(), Wrong(stated, computed), data)  # type: ignore[arg-type]


def test_options_that_a_row_does_not_have_take_no_part() -> None:
    class Open(Decision):
        def scores(self, model: Decoder, inputs: Tensor, cu_seqlens: Tensor, shares: Tensor) -> Tensor:
            return super().scores(model, inputs, cu_seqlens, shares.clamp_min(0))

    with pytest.raises(ProofError, match="its loss is .* by its definition"):
        require_definition(moved(), Open(labels=LABELS), decided())


def test_every_objective_states_its_formula() -> None:
    for name in part_names("train/objectives"):
        kind = part("train/objectives", name)
        assert kind.by_definition is not Objective.by_definition, name  # type: ignore[attr-defined]


def test_one_that_states_none_is_not_said_to_be_right() -> None:
    class Unstated(NextToken):
        def by_definition(self, model: Decoder, batch: Batch) -> None:  # type: ignore[override]
            return None

    assert "not compared" in require_definition(moved(), Unstated(), rows())


def test_a_count_that_is_not_the_formula_s_is_refused() -> None:
    class Twice(NextToken):
        def count(self, batch: Batch) -> int:
            return 2 * super().count(batch)

    with pytest.raises(ProofError, match="is divided by 44 and counts 22"):
        require_definition(moved(), Twice(), rows())


# --- through the whole proof ---


def refused(model: Decoder, objective: Objective, tuned: bool, optimizer: Any = AdamW()) -> str:  # noqa: B008
    data = rows(model.options.vocab_size)
    recipe = Recipe(model, objective, optimizer, data, source_rows(data), model.options.vocab_size, 0.1, 3, tuned)
    if not tuned:
        data = replace(data, targets=np.append(data.inputs[1:], 3))
        recipe = replace(recipe, batch=data, rows=source_rows(data))
    with pytest.raises(ProofError) as error:
        prove(recipe, Events())
    return error.value.what


class Smoothed(NextToken):
    """With a tenth of the target's share spread over the vocabulary."""

    def batch_loss(self, model: Decoder, batch: Batch) -> tuple[Tensor, int]:
        total, count = super().batch_loss(model, batch)
        return 0.9 * total - 0.1 * torch.log_softmax(_logits(model, batch), -1).mean(-1).sum(), count


class Regularised(NextToken):
    """With a small pull of the logits' normaliser to 1 (a z-loss)."""

    def batch_loss(self, model: Decoder, batch: Batch) -> tuple[Tensor, int]:
        total, count = super().batch_loss(model, batch)
        return total + 1e-3 * _logits(model, batch).logsumexp(-1).square().sum(), count


def _logits(model: Decoder, batch: Batch) -> Tensor:
    hidden: Tensor = model(torch.from_numpy(batch.inputs), torch.from_numpy(batch.cu_seqlens))
    return hidden[torch.from_numpy(batch.targets) >= 0] @ model.head_operands()[1].T.to(hidden.dtype)


@pytest.mark.parametrize("objective", [Smoothed(), Regularised()], ids=["smoothed", "z-loss"])
@pytest.mark.parametrize("tuned", [False, True])
def test_a_loss_with_something_added_is_refused(objective: Objective, tuned: bool) -> None:
    model = Llama.TINY.build(seed=1)
    assert "its loss is" in refused(model, objective, tuned)


def test_preferences_turned_round_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own = DPO._ranked
    monkeypatch.setattr(DPO, "_ranked", lambda self, *args: (r := own(self, *args))._replace(rewards=-r.rewards))
    model = Llama.TINY.build(seed=1)
    LoRA(rank=4).apply(model, seed=2)
    assert "dpo: its loss is" in refused(model, DPO(), True)


@pytest.mark.parametrize("family", ["gemma2", "qwen2"])
def test_a_tied_head_that_is_a_copy_is_refused(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Decoder = part("model/architectures", family).TINY.with_fields(tie_word_embeddings=True).build(1)  # type: ignore[attr-defined]
    own = Decoder.head_operands
    require_tied(model)
    monkeypatch.setattr(Decoder, "head_operands", lambda self: (own(self)[0].clone(),) * 2)
    assert "a copy of the input table" in refused(model, NextToken(), False)


@pytest.mark.parametrize("factor", [1e-4, 0.3, 5.0])
@pytest.mark.parametrize(
    ("optimizer", "stepper"), [(AdamW(), AdamStepper), (Muon(weight_decay=1.0), MuonStepper)], ids=["adamw", "muon"]
)
def test_a_step_at_another_rate_is_refused(
    optimizer: Any, stepper: Any, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = stepper.step
    monkeypatch.setattr(stepper, "step", lambda self, scale: own(self, scale * factor))
    assert "times as long as its rate says" in refused(Llama.TINY.build(seed=1), NextToken(), False, optimizer)


def test_a_rule_that_says_nothing_of_its_step_is_not_compared() -> None:
    class Unstated(AdamW):
        def shares_of_first_step(self, model: Decoder, steps: Any) -> dict[str, float]:
            return {}

    assert "not compared" in require_rate(Unstated(), moved(), {}, 1.0)


# --- encoders ---


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("encoder")
    encoder_to_gguf(tiny_bert(folder / "hf"), folder / "tiny.gguf", "tiny", "mit")
    return encoder_of_gguf(read_gguf(folder / "tiny.gguf")).eval()


def pairs() -> Batch:
    """Three questions, the second with two passages, one of them the first's."""
    texts = [[7, 9], [11, 12, 13], [8, 10], [14, 15], [8, 10], [11, 12, 13], [6], [16, 17, 18, 19]]
    marks = (1, 1, 0, 1)
    lengths = [len(text) for text in texts]
    edges = np.cumsum([0, *lengths]).astype(np.int32)
    targets = np.full(sum(lengths), -1)
    targets[edges[2::2] - 1] = marks
    positions = np.concatenate([np.arange(n) for n in lengths])
    return Batch(np.concatenate(texts).astype(np.int64), targets, edges, positions)


def test_pairs_are_the_formula(encoder: Any) -> None:
    assert "nats" in require_definition(encoder, Contrastive(), pairs())
    assert "nats" in require_definition(Reranker(encoder).eval(), Rank(), pairs())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stated", "computed"),
    [
        (Rank(), Rank(answer_weight=1.0)),
        (Contrastive(), Contrastive(temperature=0.06)),
    ],
    ids=["rank", "contrastive"],
)
def test_another_loss_of_pairs_is_refused(stated: Objective, computed: Objective, encoder: Any) -> None:
    model = Reranker(encoder).eval() if isinstance(stated, Rank) else encoder
    with pytest.raises(ProofError, match="its loss is .* by its definition"):
        require_definition(model, Wrong(stated, computed), pairs())  # type: ignore[arg-type]


def test_a_ranking_turned_round_is_refused(encoder: Any) -> None:
    class Turned(Rank):
        def loss(self, model: Any, inputs: Tensor, targets: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, int]:
            return super().loss(model, inputs, torch.where(targets >= 0, 1 - targets, targets), cu_seqlens)

    with pytest.raises(ProofError, match="its loss is .* by its definition"):
        require_definition(Reranker(encoder).eval(), Turned(), pairs())  # type: ignore[arg-type]
