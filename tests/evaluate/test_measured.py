"""What is measured of a file, a student and pairs, from known numbers."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.base.statistics import paired_test
from settle.data.batches import Batch
from settle.data.layouts import Example
from settle.data.likelihoods import Compared
from settle.evaluate import distillation, footprint, pair_scores
from settle.evaluate.compare import candidate
from settle.evaluate.compare.candidate import Answer
from settle.evaluate.distillation import STRETCH, Learned, Nearness, _against_live, _stretches, answer_all, learned
from settle.evaluate.footprint import footprints
from settle.evaluate.pair_scores import compare_scores, separation
from tests.fake_time import set_time
from tests.records import into


class Timed:
    """A llama.cpp whose rounds differ: the n-th loads in n seconds, has n bytes and reads 100 n tokens a second."""

    number = 0

    def __init__(self, path: Path, context: int, threads: int | None) -> None:
        self.context, self.num_vocab, self.pid = min(context, 40), 50, None
        self.asked: list[tuple[list[int], int]] = []

    def __enter__(self) -> "Timed":
        type(self).number += 1
        return self

    def __exit__(self, *error: object) -> None:
        assert [len(self.asked[0][0]), self.asked[0][1]] == [8, 2]
        ids, generated = self.asked[1]
        assert generated == 10 and len(ids) == 30 and len(set(ids)) > 25

    def timings(self, ids: list[int], number: int) -> dict[str, float]:
        self.asked.append((ids, number))
        read, written = 100 * self.number, 10 * self.number + 1
        return {"prompt_n": read, "prompt_ms": 1e3, "predicted_n": written, "predicted_ms": 1e3}


def test_a_footprint_is_the_median_of_its_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for number, path in enumerate(paths, 1):
        path.write_bytes(bytes(number))
    monkeypatch.setattr(Timed, "number", 0)
    monkeypatch.setattr(footprint, "Engine", Timed)
    monkeypatch.setattr(footprint, "peak_bytes", lambda pid: Timed.number)
    clock = iter(range(0, 10_000, 3))
    set_time(monkeypatch, footprint, perf_counter=lambda: next(clock))
    one, other = footprints(paths, rounds=3, prompt=64, generated=16)
    assert (one.num_bytes, one.rounds, one.context, one.peak_bytes, other.peak_bytes) == (1, 3, 40, 5, 6)
    assert vars(one.prompt_speed) == {"median": 300.0, "least": 100.0, "most": 500.0}
    assert vars(other.speed) == {"median": 40.0, "least": 20.0, "most": 60.0} and one.load_seconds.median == 3


def near(kl: list[float], logprob: float, top: list[bool], teacher: float = -1.0) -> Nearness:
    number = len(kl)
    compared = Compared(np.array(kl), np.full(number, logprob), np.array(top))
    return Nearness(compared, np.full(number, teacher), (1, number - 1), (0, 1))


BEFORE = near([1.0, 2.0, 3.0], -3.0, [True, False, False])
AFTER = near([0.5, 0.25, 1.5], -1.5, [True, True, False])


def test_figures_of_a_student() -> None:
    assert BEFORE.to_json() == {
        "kl": 2.0, "kl_99": pytest.approx(2.98), "kl_max": 3.0, "loss": 3.0, "same_top": pytest.approx(1 / 3),
    }  # fmt: skip
    assert BEFORE.means(BEFORE.apart.kl).tolist() == [1.0, 2.5]
    found = Learned(BEFORE, AFTER, "big", paired_test([-1.0, -2.5], [-0.5, -0.875]))
    assert found.recovered == 0.75  # 1.5 of the 2 nats that lay between them
    assert Learned(near([0.0], -1.0, [True]), AFTER, "big", found.paired).recovered is None
    assert found.headline == (
        "0.750 nats per token from big, 2.000 before; the same likeliest token in 67%, 33% before"
    )
    told = found.to_json()
    assert told["teacher"] == {"name": "big", "loss": 1.0} and told["tokens"] == 3 and told["recovered"] == 0.75
    change = found.paired.difference
    assert told["kl_change"] == [-change.high, -change.low] and told["after"] == AFTER.to_json()
    card = found.card_lines()
    assert card[0].startswith("0.750 nats") and card[0].endswith("on 3 held-out tokens.")
    assert (
        "| loss, nats per token | 3.0000 | 1.5000 | 1.0000 |" in card
        and "| KL, largest | 3.0000 | 1.5000 | 0 |" in card
    )
    assert "| same likeliest token | 33.3% | 66.7% | 100 % |" in card
    assert card[-2] == "Training closed 75% of the gap to the teacher's loss."


def rows_of(*counts: int, families: list[int] | None = None) -> Batch:
    """A row of each count of targets, behind one token that is none."""
    targets = np.concatenate([[-1] + [1] * count for count in counts])
    bounds = np.cumsum([0, *(count + 1 for count in counts)]).astype(np.int32)
    return Batch(targets, targets, bounds, targets, families=None if families is None else np.array(families))


def test_a_long_row_is_several_stretches_of_nearly_equal_length() -> None:
    found = _stretches(rows_of(3, 2 * STRETCH + 1, STRETCH, families=[7, 7, 9]), 4)
    assert found == [(3, (4, 0), 7), *((43, (4, 1), 7),) * 3, (STRETCH, (4, 2), 9)]
    assert _stretches(rows_of(1), 0) == [(1, (0, 0), None)]


class Student:
    """Takes weights and says which it has; nothing else is asked of it here."""

    def __init__(self) -> None:
        self.weights, self.bare = "before", False

    def load_trainable(self, weights: Any) -> None:
        self.weights = weights

    def without_adapters(self) -> "Student":
        return self

    def __enter__(self) -> None:
        self.bare = True

    def __exit__(self, *error: object) -> None:
        self.bare = False


class Numbered(int):
    """A batch that is its number of tokens to learn."""

    inputs = targets = np.zeros(1, np.int64)


def compared(monkeypatch: pytest.MonkeyPatch, number: int, seconds: float | None, each: float = 1.0) -> Any:
    """`learned` on batches that take `each` seconds; what was read, and what was said."""
    clock, read, heard = [0.0], [], []

    def nearness(model: Student, objective: Any, batches: Any, on_batch: Any) -> Nearness:
        seen = []
        for batch in batches:
            seen.append(batch)
            clock[0] += each
            if not on_batch():
                break
        read.append((model.weights, model.bare, seen))
        return near([1.0] * 12 if model.weights == "first" else [0.5] * 12, -1.0, [True] * 12)

    monkeypatch.setattr(distillation, "nearness", nearness)
    set_time(monkeypatch, distillation, monotonic=lambda: clock[0])
    objective: Any = SimpleNamespace(count=lambda batch: batch)
    model: Any = Student()
    events = Events(listeners=[into(heard)])
    batches: Any = [Numbered(n) for n in range(number + 1)]  # the first has nothing to learn
    found = learned(model, objective, batches, "first", "last", "big", events, seconds)  # type: ignore[arg-type]
    progress = [event for event in heard if event["kind"] == "progress"]
    return found, read, progress, [e["text"] for e in heard if "text" in e]


def test_a_student_is_compared_before_and_after_on_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    found, read, progress, said = compared(monkeypatch, 10, None)
    assert [(weights, bare, sorted(seen)) for weights, bare, seen in read] == [
        ("first", True, list(range(1, 11))), ("last", False, list(range(1, 11))),
    ]  # fmt: skip
    assert read[0][2] == read[1][2] != sorted(read[0][2])  # every beginning is spread
    assert found.is_whole and found.paired.difference.value == 0.5 and said == [found.headline]
    assert [(e["done"], e["total"]) for e in progress] == [(n, 20) for n in range(1, 21)]


def test_where_time_is_short_fewer_batches_are_read_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third batch would begin within the half that reading it once may take, a fourth would end behind it."""
    found, read, progress, said = compared(monkeypatch, 10, 6.0)
    assert [len(seen) for _, _, seen in read] == [3, 3] and read[0][2] == read[1][2] and not found.is_whole
    assert said[0] == "the time had room to compare 3 of 10 batches of held-out rows" and progress[-1]["done"] == 6
    assert compared(monkeypatch, 10, 20.0)[0].is_whole and len(compared(monkeypatch, 10, 0.0)[1][0][2]) == 1


class Head:
    """Its hidden states are its logits."""

    def __init__(self, logits: np.ndarray) -> None:
        self.table, self.options = torch.tensor(logits), SimpleNamespace(vocab_size=logits.shape[1])

    def __call__(self, inputs: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        return self.table[inputs]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


@pytest.mark.parametrize("step", [1, 2, 9])
def test_a_live_teacher_weighs_the_divergence(step: int) -> None:
    random = np.random.default_rng(0)
    ours, theirs = random.normal(size=(4, 5)), random.normal(size=(4, 5))
    theirs[2] = ours[2]
    inputs, where, targets = torch.arange(4), torch.tensor([0, 2, 3]), torch.tensor([4, 0, 1])
    teacher: Any = SimpleNamespace(models=[Head(theirs)])
    hidden = torch.tensor(ours)[where]
    found, said = _against_live(Head(ours), teacher, hidden, (inputs, inputs, where, targets), step)  # type: ignore[arg-type]
    p, q = (side - np.log(np.exp(side).sum(1, keepdims=True)) for side in (theirs[where], ours[where]))
    assert found.kl == pytest.approx((np.exp(p) * (p - q)).sum(1)) and found.kl[1] == pytest.approx(0)
    assert found.logprobs == pytest.approx(q[range(3), targets]) and said == pytest.approx(p[range(3), targets])
    assert found.top_equal.tolist() == (p.argmax(1) == q.argmax(1)).tolist()


def pairs(labels: list[int], groups: list[int]) -> Batch:
    """Pairs of a question of one token and a passage of two, whose label stands at its end."""
    targets = np.concatenate([[-1, -1, label] for label in labels])
    bounds = np.concatenate([[0], np.cumsum([1, 2] * len(labels))]).astype(np.int32)
    return Batch(targets, targets, bounds, targets, families=np.repeat(groups, 2))


def test_pairs_are_told_apart_better() -> None:
    labels, groups = [1, 0] * 20, [n // 4 for n in range(40)]
    batches = [pairs(labels[:24], groups[:24]), pairs(labels[24:], groups[24:])]
    good = np.array([2.0, 1.0] * 20)
    bad = np.array([1.0, 2.0, 2.0, 1.0] * 10)
    found = compare_scores(bad, good, batches)
    assert found["verdict"] == "better" and (found["base"], found["tuned"]) == (0.5, 1.0)
    assert found["low"] == found["high"] == 0.5  # every group is right or wrong alike
    assert found["headline"] == (
        "better: a passage that answers scores above one that does not in 100.0% of cases, the base's cosine 50.0% "
        "(difference +50.0%, +50.0% to +50.0%; 10 groups of questions)"
    )
    assert compare_scores(good, bad, batches)["verdict"] == "worse"
    assert compare_scores(good, good, batches)["verdict"] == "no different"
    mixed = np.where(np.arange(40) < 20, good, bad)  # only half of the groups differ: the interval says so
    part = compare_scores(bad, mixed, batches)
    assert 0 < part["low"] < 0.25 < part["high"] < 0.5  # type: ignore[operator]


def test_the_interval_of_a_separation_is_that_of_the_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rises of 0 to 0.999: 2.5 % of them lie below the interval, and as many above."""
    values = iter([x for rise in range(1000) for x in (rise / 1000, 0.0)] + [0.25, 0.75])
    monkeypatch.setattr(pair_scores, "separation", lambda scores, answers: next(values))
    found = compare_scores(np.zeros(2), np.zeros(2), [pairs([1, 0], [0, 1])])
    assert (found["low"], found["high"]) == pytest.approx((0.024975, 0.974025))
    assert (found["base"], found["tuned"], found["verdict"]) == (0.25, 0.75, "better")


def test_the_separation_counts_pairs_in_order() -> None:
    answers = np.array([True, False, True, False, False])
    scores = np.array([3.0, 1.0, 1.0, 2.0, 3.0])
    wanted = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a in scores[answers] for b in scores[~answers]])
    assert separation(scores, answers) == pytest.approx(wanted)


class Teacher:
    """Answers every question but one by its number, a second each."""

    def __init__(self, chats: bool, clock: list[float]) -> None:
        self.chats, self.clock, self.asked = chats, clock, [0] * 0

    def __enter__(self) -> "Teacher":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def answers(self, questions: Any, max_tokens: int, on_progress: Any) -> list[Answer]:
        self.asked.append(len(questions))
        self.clock[0] += len(questions)
        on_progress(len(questions))
        return [Answer("" if q.number == 2 else f" answer {q.number}") for q in questions]


def answered(
    monkeypatch: pytest.MonkeyPatch, folder: Path, number: int, seconds: float | None, chats: bool = True
) -> tuple[Path, list[dict[str, Any]], Teacher, list[dict[str, Any]]]:
    clock = [0.0]
    teacher, heard = Teacher(chats, clock), [{}] * 0
    monkeypatch.setattr(distillation.FileModel, "open", lambda *args: teacher)
    set_time(monkeypatch, distillation, monotonic=lambda: clock[0])
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    model: Any = SimpleNamespace(weights=None, name="big", adapter=None)
    rows = [Example("chat", messages, [{"type": "function"}] if n == 0 else []) for n in range(number)]
    events = Events(listeners=[into(heard)])
    path = answer_all(model, rows, folder / "deep" / "rows.jsonl", 5, events, seconds)
    return path, [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()], teacher, heard


def test_a_teacher_s_answers_are_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path, rows, teacher, heard = answered(monkeypatch, tmp_path, 20, None)
    assert path.name == "rows.jsonl" and teacher.asked == [20] and len(rows) == 19  # one has no answer
    assert rows[0]["messages"][1] == {"role": "assistant", "content": " answer 1"} and rows[0]["tools"]
    assert "tools" not in rows[1] and [p.name for p in path.parent.iterdir()] == ["rows.jsonl"]
    assert [(event["done"], event["total"]) for event in heard] == [(20, 20)]
    _, plain, _, _ = answered(monkeypatch, tmp_path, 3, None, chats=False)
    assert plain[0] == {"prompt": "?", "completion": " answer 1"}


def test_what_a_teacher_has_no_time_for_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path, rows, teacher, heard = answered(monkeypatch, tmp_path, 40, 20.0)
    assert teacher.asked == [8, 8] and path.name == "rows-16.jsonl"
    numbers = [int(row["messages"][1]["content"].split()[1]) for row in rows]
    assert numbers == sorted(numbers) and numbers[-1] > 30  # spread over all of them
    assert heard[-1]["text"] == "the time had room for the teacher's answers to 16 of 40 questions"
    assert [event["done"] for event in heard[:-1]] == [8, 16]
    assert answered(monkeypatch, tmp_path, 16, 16.0)[2].asked == [8, 8]
    assert answered(monkeypatch, tmp_path, 16, 0.0)[2].asked == [8]


def test_a_teacher_that_says_nothing_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Teacher, "answers", lambda self, questions, most, on_progress: [Answer(" ")] * len(questions))
    with pytest.raises(DataError, match="big answers none of 3 questions"):
        answered(monkeypatch, tmp_path, 3, None)


@pytest.mark.parametrize(("chats", "temperature"), [(True, 0.0), (False, candidate.TEMPERATURE)])
def test_a_sample_is_what_the_live_model_writes(
    monkeypatch: pytest.MonkeyPatch, tiny: Any, chats: bool, temperature: float
) -> None:
    tokenizer, asked, heard = copy.copy(tiny.tokenizer), [()] * 0, [{}] * 0
    if not chats:
        tokenizer.chat_template = ""
    clock = [0.0]

    def generate(*args: Any) -> Any:
        asked.append(args)
        for token in tokenizer.encode("self.x = 1").tolist() * 3:
            clock[0] += 1.0
            yield token

    monkeypatch.setattr(candidate, "generate", generate)
    set_time(monkeypatch, candidate, monotonic=lambda: clock[0])
    taken = candidate.Samples(tiny.model, tokenizer, 10, "def f(x): return x", Events(listeners=[into(heard)]))
    taken.take(7, "end")
    model, ids, most, heat, top_p, seed, stops, context = asked[0]
    assert (
        model is tiny.model and len(ids) == 5 and (most, heat, top_p, seed, context) == (64, temperature, 0.95, 0, 10)
    )
    assert set(stops) == {tokenizer.eos_id, tokenizer.turn_end_id}
    wanted = tokenizer.decode(
        (tokenizer.encode("self.x = 1").tolist() * 3)[:7]
    )  # six seconds, and the one that ends it
    assert heard[0] | {"time": 0} == {
        "time": 0, "kind": "sample", "step": 7, "moment": "end", "prompt": "def f(x): return x", "text": wanted,
    }  # fmt: skip


@pytest.mark.parametrize(("label", "kind"), [(1, "answer"), (0, "do not answer")])
def test_pairs_of_one_kind_are_not_compared(label: int, kind: str) -> None:
    found = compare_scores(np.zeros(2), np.ones(2), [pairs([label] * 2, [0, 1])])
    assert found["verdict"] == "not compared" and f"all 2 pairs that judge {kind};" in str(found["headline"])
    assert not {"base", "tuned"} & set(found)  # no figure, and so no NaN in result.json
