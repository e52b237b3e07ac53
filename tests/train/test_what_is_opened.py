"""What a plan's names become: teachers, bases and adapters, and what does not go together is refused with a way out."""

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from settle.base.errors import FormatError, UsageError
from settle.model.adapters.lora import LoRA
from settle.model.architectures.llama import Llama
from settle.train import live_run, thread_choice
from settle.train import teacher as teachers
from settle.train.live_run import LiveRun, open_base, tuned_model
from settle.train.objectives import contrastive, distill, dpo, rank
from settle.train.objectives.contrastive import Contrastive
from settle.train.objectives.distill import Distill
from settle.train.objectives.next_token import NextToken
from settle.train.objectives.rank import Rank
from settle.train.teacher import LiveTeacher
from settle.train.training_plan import Tuning
from tests.plan.test_plan_files import PLAN

TUNING = Tuning("b", "base", "0" * 64, "lora", {"rank": 4}, "nf4", 4, recompute=1, float32_scores=(1,))


def pretrained(name: str, layers: int = 4, width: int = 64, vocab_size: int = 64, **parts: Any) -> Any:
    options = SimpleNamespace(layers=[SimpleNamespace(width=width)] * layers, vocab_size=vocab_size)
    part = SimpleNamespace(options=lambda: options, num_parameters=1000)
    tokenizer = SimpleNamespace(eos_id=7, turn_end_id=3)
    source = SimpleNamespace(path=Path(name), sha256=name[0] * 64)
    return SimpleNamespace(**{"part": part, "tokenizer": tokenizer, "name": name, "source": source} | parts)


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The teacher that every name opens; its model is a tiny one."""
    one = pretrained("teacher", layers=6)
    one.load = lambda dtype: Llama.TINY.build(seed=0)
    monkeypatch.setattr(distill, "open_pretrained", lambda name: one)
    monkeypatch.setattr(distill, "require_same_tokenizer", lambda ours, theirs, names: None)
    return one


# --- a teacher ---


@pytest.mark.parametrize(("here", "chosen"), [(6, [0, 1, 2, 3, 4, 5]), (3, [1, 3, 5]), (2, [2, 5]), (4, [1, 2, 3, 5])])
def test_layers_are_spread_evenly_and_the_last_is_the_teacher_s(teacher: Any, here: int, chosen: list[int]) -> None:
    found = Distill(teacher="t", hidden=1.0).resolved(pretrained("student", here))
    assert found.layer_map == chosen and chosen[-1] == 5
    assert Distill(teacher="t").resolved(pretrained("student", here)).layer_map == []


def test_layers_that_were_named_are_taken(teacher: Any) -> None:
    student = pretrained("student", 2)
    assert Distill(teacher="t", hidden=1.0, layer_map="0, 5").resolved(student).layer_map == [0, 5]  # type: ignore[arg-type]
    for wrong in ([0], [0, 6], [-1, 2], [0, 1, 2]):
        with pytest.raises(UsageError, match="does not name one of 6 layers for each of 2"):
            Distill(teacher="t", hidden=1.0, layer_map=wrong).resolved(student)
    with pytest.raises(UsageError, match="layers of width 32 cannot be held against layers of 64"):
        Distill(teacher="t", hidden=1.0).resolved(pretrained("student", 2, width=32))


def test_a_teacher_is_pinned_with_what_ends_a_completion(teacher: Any) -> None:
    found = Distill(teacher="t").resolved(pretrained("student"))
    assert found.teacher == str(Path("teacher").resolve()) and found.teacher_sha256 == "t" * 64
    assert found.stops == [3, 7]
    student = pretrained("student", tokenizer=SimpleNamespace(eos_id=7, turn_end_id=None))
    assert Distill(teacher="t").resolved(student).stops == [7]
    assert Distill(teacher="t", stops=[1], teacher_sha256="9").resolved(student).stops == [1]
    assert Distill(teacher="t", teacher_sha256="9").resolved(student).teacher_sha256 == "9"
    with pytest.raises(UsageError, match="needs a teacher"):
        Distill().resolved(student)
    with pytest.raises(UsageError, match="teacher has 64 rows in its table and student 65"):
        Distill(teacher="t").resolved(pretrained("student", vocab_size=65))


@pytest.mark.parametrize(
    ("asked", "named"),
    [({"temperature": 2.0}, "temperature"), ({"hidden": 0.1}, "hidden"), ({"on_policy": 0.1}, "on-policy")],
)
def test_a_record_cannot_be_asked(teacher: Any, asked: dict[str, float], named: str) -> None:
    Distill(teacher="t", **asked).resolved(pretrained("student"))  # type: ignore[arg-type]
    Distill(teacher="t", record="r").resolved(pretrained("student"))
    with pytest.raises(UsageError, match=f"--objective.{named} needs a teacher that can be asked"):
        Distill(teacher="t", record="r", **asked).resolved(pretrained("student"))  # type: ignore[arg-type]


def test_the_teacher_of_a_run_is_the_one_it_began_with(teacher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    student = Llama.TINY.build(seed=1)
    for sha in ("", "t" * 64):
        live = Distill(teacher="t", teacher_sha256=sha, layer_map=[1]).prepared(student).loaded_teacher
        assert isinstance(live, LiveTeacher) and live.layers == ()
    with_layers = Distill(teacher="t", hidden=1.0, layer_map=[1]).prepared(student).loaded_teacher
    assert with_layers.layers == (1,)
    with pytest.raises(FormatError, match="its sha256 is tttttttttttt…, it was 999"):
        Distill(teacher="t", teacher_sha256="9" * 64).prepared(student)
    several = Distill(teacher="t", others=["t", "t"], teacher_sha256=f"{'t' * 64},{'t' * 64}")
    live = several.prepared(student).loaded_teacher
    assert isinstance(live, LiveTeacher) and len(live.models) == 3 and several.bytes_beside(2) == 6000.0
    with pytest.raises(FormatError, match="its sha256 is tttttttttttt…, it was 999"):
        several.model_copy(update={"teacher_sha256": f"{'t' * 64},{'9' * 64}"}).prepared(student)
    monkeypatch.setattr(distill.RecordedTeacher, "open", lambda folder: folder)
    assert Distill(teacher="t", record="r").prepared(student).loaded_teacher == Path("r")
    assert Distill(teacher="t").bytes_beside(2) == 2000.0 and Distill(record="r").bytes_beside(2) == 0.0
    assert NextToken().bytes_beside(4) == 0.0


def test_a_teacher_remembers_what_it_said_of_held_out_text_as_far_as_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Llama.TINY.build(seed=0)
    calls: list[int] = []
    plain = teachers.with_states
    monkeypatch.setattr(teachers, "with_states", lambda *args: calls.append(1) or plain(*args))
    one, other = torch.arange(1, 9), torch.arange(2, 10)
    bounds, counted = torch.tensor([0, 8], dtype=torch.int32), torch.tensor([1, 5])

    def asked(teacher: LiveTeacher, *texts: torch.Tensor) -> int:
        before = len(calls)
        for text in texts:
            said = teacher.output(text, bounds, counted, None)
            hidden = plain(model, text, bounds, [])[0][counted]
            torch.testing.assert_close(said.distributions.hidden, hidden)  # type: ignore[attr-defined]
            assert len(said.states) == len(teacher.layers)
        return len(calls) - before

    size = 2 * model.width * 4
    monkeypatch.setattr(teachers, "REMEMBERED_BYTES", size)
    with torch.no_grad():
        teacher = LiveTeacher(model)
        assert asked(teacher, one, one) == 1 and asked(teacher, other, other, one) == 2  # room for one of them
        assert asked(LiveTeacher(model, [1]), one, one) == 2  # which takes twice as much
        model.compute_dtype = torch.bfloat16
        before = len(calls)
        teacher.output(one, bounds, counted, None)
        assert len(calls) == before + 1  # said in another type
        model.compute_dtype = torch.float32
        assert asked(teacher, one) == 0
    assert asked(LiveTeacher(model), one, one) == 2  # what is learned from comes once


# --- a base ---


def test_a_base_is_the_one_the_run_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_run, "open_pretrained", lambda name: pretrained("0base"))
    assert open_base(TUNING).name == "0base"
    monkeypatch.setattr(live_run, "open_pretrained", lambda name: pretrained("1base"))
    with pytest.raises(FormatError, match="its sha256 is 111111111111…, it was 000000000000…"):
        open_base(TUNING)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_is_trained_is_the_adapter_or_everything(method: str) -> None:
    from dataclasses import replace

    asked: dict[str, Any] = {}

    def load(**how: Any) -> Any:
        asked.update(how)
        model = Llama.TINY.build(seed=0)
        return model.requires_grad_(how["trainable"])

    tuning = replace(TUNING, adapter_name=method, adapter={"rank": 4} if method == "lora" else {})
    plan = replace(PLAN, tuning=tuning, dtype="bfloat16")
    base: Any = pretrained("base", load=load)
    model = tuned_model(plan, tuning, base)
    assert asked == {"trainable": method == "full", "dtype": torch.bfloat16, "quantize": "nf4"}
    trained = model.trainable()
    assert all(".adapter." in name for name in trained) == (method == "lora") and trained
    assert model.recompute == 1 and model.float32_scores == (1,)
    run = object.__new__(LiveRun)
    run.plan, run.base = plan, base
    assert run.whole == (method == "full")
    run.base = None
    assert not run.whole
    run.base, run.plan = base, replace(plan, tuning=None)
    assert not run.whole and LoRA(rank=4).rank == 4


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5} if pid == 0 else {0}, raising=False)
    assert thread_choice._cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert thread_choice._cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert thread_choice._cores() == 1


# --- pairs ---


def pairs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three pairs of texts of unequal length; the passages of the first and the last answer, and are the same."""
    texts = [[1], [5, 6], [2, 2], [7], [3], [5, 6]]
    marks = [1, 0, 1]
    targets = [[-1] * len(t) for t in texts]
    for number, mark in enumerate(marks):
        targets[2 * number + 1][-1] = mark
    bounds = torch.tensor([0, *map(len, texts)]).cumsum(0)
    return torch.tensor(sum(texts, [])), torch.tensor(sum(targets, [])), bounds


def test_rank_is_the_weighted_cross_entropy_of_its_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank, "as_kind", lambda model, kind: model)
    logits = torch.tensor([0.3, -1.2, 2.0])

    class Scores:
        def pairs(self, questions: list[torch.Tensor], passages: list[torch.Tensor]) -> torch.Tensor:
            assert [q.tolist() for q in questions] == [[1], [2, 2], [3]]
            assert [p.tolist() for p in passages] == [[5, 6], [7], [5, 6]]
            return logits

    loss, count = Rank(answer_weight=2.5).loss(Scores(), *pairs())  # type: ignore[arg-type]
    rising, falling = torch.sigmoid(logits).log(), torch.sigmoid(-logits).log()
    assert loss.item() == pytest.approx(-(2.5 * rising[0] + falling[1] + 2.5 * rising[2]).item(), rel=1e-6)
    assert count == 3 == Rank().count(SimpleNamespace(cu_seqlens=pairs()[2]))  # type: ignore[arg-type]


def test_contrastive_tells_the_own_passage_from_the_others_and_not_from_its_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contrastive, "as_kind", lambda model, kind: model)
    vectors = {(1,): [1.0, 0.0], (2, 2): [0.0, 1.0], (3,): [0.6, 0.8], (5, 6): [0.8, 0.6], (7,): [0.0, -1.0]}

    class Encoded:
        device = torch.device("cpu")

        def vectors(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            rows = [tuple(row[keep.bool()].tolist()) for row, keep in zip(ids, mask, strict=True)]
            return torch.tensor([vectors[row] for row in rows])

    loss, count = Contrastive(temperature=0.5).loss(Encoded(), *pairs())  # type: ignore[arg-type]
    # of the first and the last question: their passage against the second's, whose copy is left out
    first = -torch.log_softmax(torch.tensor([0.8, 0.0]) / 0.5, 0)[0]
    last = -torch.log_softmax(torch.tensor([0.96, -0.8]) / 0.5, 0)[0]
    assert loss.item() == pytest.approx((first + last).item(), rel=1e-5) and count == 2


def test_preferences_are_of_each_pair_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three pairs: by how much the worse answer costs more, to the base and to the tuned model."""
    nats = iter([torch.tensor([1.0, 4.0, 2.0, 9.0, 3.0, 3.0]), torch.tensor([1.0, 5.0, 4.0, 8.0, 1.0, 6.0])])
    monkeypatch.setattr(dpo, "answer_losses", lambda *_: next(nats))
    monkeypatch.setattr(dpo, "as_kind", lambda model, kind: model)
    model: Any = SimpleNamespace(without_adapters=contextlib.nullcontext)
    base, tuned, rewards = dpo.DPO(beta=0.5)._ranked(model, *pairs())
    assert base.tolist() == [3.0, 7.0, 0.0] and tuned.tolist() == [4.0, 4.0, 5.0]
    assert rewards.tolist() == [0.5, -1.5, 2.5]


def test_the_token_with_the_number_0_is_learned_like_any_other() -> None:
    model = Llama.TINY.build(seed=0).requires_grad_(False)
    inputs, bounds = torch.tensor([5, 6, 7, 8]), torch.tensor([0, 2, 4], dtype=torch.int32)
    found = dpo.answer_losses(model, inputs, torch.tensor([-1, 0, 0, 3]), bounds)
    logs = torch.log_softmax(model(inputs, bounds) @ model.head.T, -1)
    torch.testing.assert_close(found, torch.stack([-logs[1, 0], -logs[2, 0] - logs[3, 3]]))


def test_a_trial_s_times_are_of_its_later_steps() -> None:
    trial = thread_choice.Trial(current=4, other=2)
    for seconds, tokens in ((9.0, 1), (0.1, 10), (0.2, 10), (9.0, 1), (0.1, 10), (0.2, 20)):
        trial.add(seconds, tokens)
    assert trial.seconds == pytest.approx({2: 0.3, 4: 0.3}) and trial.tokens == {2: 20, 4: 30}
    assert trial.phase == 2 and trial.threads == 2 and trial.ratio == pytest.approx(1.5) and not trial.is_over
