"""The parts of the proof by themselves: its rows, its bars, its own attention, and what it says of targets."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from settle.base.errors import ProofError
from settle.base.statistics import student_quantile
from settle.data.batches import Batch
from settle.train import proof as proving
from settle.train.objectives.next_token import NextToken
from settle.train.optimizers.adamw import AdamW
from settle.train.proof import (
    Recipe,
    between,
    compute_type,
    definition,
    require_first_loss,
    row_by_row,
    shorten,
    tails,
    whole_rows,
)
from settle.train.proof.compute_type import (
    DRAWS,
    DRAWS_LEVEL,
    LEAST,
    LEAST_OF_SCALE,
    LEAST_OF_TENSOR,
    TIMES,
    Deviation,
    EmulatedRounding,
    RoundingError,
    deviation,
    require_within,
)
from settle.train.proof.definition import _another, _require_segment, attention_by_definition, stepped
from settle.train.proof.source import SourceRow, _difference, require_targets, require_text
from tests.train.test_proof import batch

# --- rows ---


def packed(*lengths: int, record: bool = False) -> Batch:
    """Token i is i, and its target i + 1."""
    total = sum(lengths)
    positions = np.concatenate([np.arange(n) for n in lengths])
    edges = np.cumsum([0, *lengths]).astype(np.int32)
    return Batch(np.arange(total), np.arange(total) + 1, edges, positions, np.arange(total) if record else None)


@pytest.mark.parametrize(
    ("lengths", "tokens", "segments", "edges"),
    [
        ((10, 10, 10), 25, 6, [0, 10, 20, 25]),
        ((10, 10, 10), 20, 6, [0, 10, 20]),
        ((10, 10, 10), 99, 2, [0, 10, 20]),
        ((3,) * 9, 99, 6, [0, 3, 6, 9, 12, 15, 18]),
        ((30,), 12, 6, [0, 4, 12]),  # one document is cut in two
        ((30,), 2, 6, [0, 2]),
        ((3,), 99, 6, [0, 1, 3]),
    ],
)
def test_the_beginning_of_a_batch_has_two_segments(
    lengths: tuple[int, ...], tokens: int, segments: int, edges: list[int]
) -> None:
    part = shorten(packed(*lengths), tokens, segments)
    assert part.cu_seqlens.tolist() == edges and part.inputs.tolist() == list(range(edges[-1]))
    assert part.positions.tolist() == [i for a, b in zip(edges, edges[1:], strict=False) for i in range(b - a)]


@pytest.mark.parametrize(
    ("tokens", "step", "edges"),
    [(25, 1, [0, 10, 20]), (30, 1, [0, 10, 20, 30]), (40, 2, [0, 10, 20, 30, 40]), (20, 1, [0, 10, 20])],
)
def test_as_many_whole_rows_as_fit(tokens: int, step: int, edges: list[int]) -> None:
    assert whole_rows(packed(10, 10, 10, 10), tokens, step).cu_seqlens.tolist() == edges


def test_two_rows_that_fit_are_whole_however_unequal() -> None:
    assert whole_rows(packed(15, 5, 10), 20, 1).cu_seqlens.tolist() == [0, 15, 20]
    assert whole_rows(packed(15, 6, 10), 20, 1).cu_seqlens.tolist() == [0, 10, 16]


def test_of_long_rows_their_beginnings_and_ends_are_taken() -> None:
    for tokens, step in ((20, 1), (40, 2)):  # of two rows
        part = whole_rows(packed(50, 50, 50, 50, record=True), tokens, step)
        assert len(part.cu_seqlens) == 2 * step + 1 and part.record is not None
        assert part.inputs[:10].tolist() == [0, 1, 2, 3, 44, 45, 46, 47, 48, 49] == part.record[:10].tolist()
        assert part.targets.tolist() == (part.inputs + 1).tolist() and part.positions[:10].tolist() == list(range(10))
    alone = whole_rows(packed(50, record=False), 10, 1)
    assert alone.cu_seqlens.tolist() == [0, 10] and alone.record is None
    assert whole_rows(packed(8), 10, 1).cu_seqlens.tolist() == [0, 8]
    assert tails(packed(50, 50), 6, 2).inputs.tolist() == [0, 48, 49, 50, 98, 99]
    assert tails(packed(5, 50), 10, 2).inputs.tolist() == [0, 1, 2, 3, 4, 5, 6, 52, 53, 54]


def test_parts_and_rows_of_a_batch() -> None:
    whole = packed(3, 2, 4, 1, record=True)
    part = between(whole, whole.cu_seqlens[1:4])
    assert part.inputs.tolist() == [3, 4, 5, 6, 7, 8] and part.cu_seqlens.tolist() == [0, 2, 6]
    assert part.record is not None and part.record.tolist() == [3, 4, 5, 6, 7, 8]
    assert part.positions.tolist() == [0, 1, 0, 1, 2, 3]
    assert [row.inputs.tolist() for row in row_by_row(whole, 2)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert len(list(row_by_row(whole, 1))) == 4


# --- the bars of the compute type ---


def test_a_deviation_is_relative_to_the_exact_gradient() -> None:
    exact = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0, 12.0]), "none": torch.zeros(2)}
    there = {"a": torch.tensor([3.5, 4.0]), "b": torch.tensor([0.0, 15.0]), "none": torch.ones(2)}
    found = deviation(there, exact, 2.2, 2.0)
    assert found.tensors == pytest.approx({"a": 0.1, "b": 0.25, "none": 0.0})
    assert found.loss == pytest.approx(0.1) and found.of_all == pytest.approx(math.sqrt((0.25 + 9 + 2) / 169))
    assert found.scale == pytest.approx((0.5 * 3 + 3 * 12) / 169) and found.worst == "b"
    assert Deviation(0.0, 0.0, 0.0, {"a": 9.0, "b": math.nan, "c": 1.0}).worst == "b"


def within(
    measured: Deviation,
    emulated: Deviation,
    dtype: torch.dtype = torch.bfloat16,
    draw: Callable[[int], Deviation] | None = None,
) -> str:
    return require_within(dtype, measured, emulated, 0.3, 0.6, draw or (lambda seed: emulated))


@pytest.mark.parametrize("part", ["loss", "of_all", "scale", "tensors"])
@pytest.mark.parametrize("emulated", [0.0, 0.06, 1.0])
def test_each_deviation_has_its_bar(part: str, emulated: float) -> None:
    """Three times what rounding explains, or Student's of six draws for what has a sign; at least what sums in another
    order make, at most what is too much."""
    half = torch.bfloat16
    least = {
        "loss": LEAST[half] / 10, "of_all": LEAST[half], "scale": LEAST_OF_SCALE[half],
        "tensors": LEAST_OF_TENSOR * LEAST[half],
    }[part]  # fmt: skip
    most = {"loss": 0.03, "of_all": 0.3, "scale": 0.3, "tensors": 0.6}[part]
    times = student_quantile((1 + DRAWS_LEVEL) / 2, 1 + DRAWS) if part in ("loss", "scale") else TIMES
    bar = min(most, max(times * emulated, least))

    def made(error: float) -> Deviation:
        values: dict[str, Any] = {"loss": 0.0, "of_all": 0.0, "scale": 0.0, "tensors": {"w": 0.0, "v": 0.0}}
        return Deviation(**values | {part: {"w": error, "v": 0.0} if part == "tensors" else error})

    within(made(0.99 * bar), made(emulated))
    for sign in (1, -1) if part == "scale" else (1,):
        with pytest.raises(RoundingError, match="rounding explains"):
            within(made(sign * 1.01 * bar), made(emulated))
    with pytest.raises(RoundingError):
        within(made(math.nan), made(emulated))


@pytest.mark.parametrize("part", ["loss", "scale"])
def test_one_rounding_that_cancels_out_refuses_nothing(part: str) -> None:
    """More are drawn, once, where the first one explains too little; they refuse what they do not explain either."""
    seeds: list[int] = []

    def made(error: float) -> Deviation:
        return Deviation(**{"loss": 0.0, "of_all": 0.0, "scale": 0.0, "tensors": {"w": 0.0}} | {part: error})

    def draw(seed: int) -> Deviation:
        seeds.append(seed)
        return made((-1) ** seed * 0.0065)

    within(made(0.002), made(1e-6), draw=draw)
    assert not seeds  # less than what sums in another order make
    within(made(0.021 if part == "scale" else 0.02), made(1e-6), draw=draw)
    assert seeds == [1, 2, 3, 4, 5]
    with pytest.raises(RoundingError, match="rounding explains"):
        within(made(0.025), made(1e-6), draw=draw)


def test_a_rounding_on_another_grid_is_as_large_and_another() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(64, 128), torch.randn(128, 32)
    exact, errors = left @ right, list[torch.Tensor]()
    for seed in (None, 1, 2):
        with EmulatedRounding(torch.bfloat16, 0, seed):
            errors.append((left @ right) - exact)
    sizes = [float(error.norm()) for error in errors]
    assert min(sizes) > 0.8 * max(sizes) and not any(torch.equal(a, b) for a, b in pairwise(errors))
    half = right.bfloat16().float(), left.bfloat16().float()
    with EmulatedRounding(torch.bfloat16, 0, 3):
        product = half[1] @ half[0]
    assert float((product - half[1] @ half[0]).norm()) < 0.8 * min(sizes)  # the operands came in the type


def test_the_tensor_that_is_named_is_furthest_beyond_its_rounding() -> None:
    emulated = Deviation(0.0, 0.0, 0.0, {"noisy": 0.15, "quiet": 0.0})
    with pytest.raises(RoundingError, match="quiet: its gradient in bfloat16 is 3.0e-01 off"):
        within(Deviation(0.0, 0.0, 0.0, {"noisy": 0.4, "quiet": 0.3}), emulated)
    said = within(Deviation(0.0, 0.01, 0.0, {"noisy": 0.4, "quiet": 0.05}), emulated)
    assert said.startswith("bfloat16, 1.0e-02 off") and "worst tensor noisy: 4.0e-01" in said


# --- attention and sight ---


def options(**changes: Any) -> Any:
    rope = {"rotary_dim": None, "theta": 1e4, "frequencies": None, "long_after": None, "long_frequencies": None,
            "attention_factor": 1.0} | changes.pop("rope", {})  # fmt: skip
    values = {"heads": 4, "kv_heads": 2, "head_dim": 8, "query_scale": None, "soft_cap": None, "window": None,
              "sinks": False}  # fmt: skip
    return SimpleNamespace(**values | changes, rope=SimpleNamespace(**rope))


def slowly(qkv: np.ndarray, bounds: list[int], o: Any, sinks: torch.Tensor | None = None) -> np.ndarray:
    """Token by token and head by head, with complex numbers for the rotations."""
    d, out = o.head_dim, np.zeros((len(qkv), o.heads * o.head_dim))
    rotary = o.rope.rotary_dim or d
    for first, last in zip(bounds, bounds[1:], strict=False):
        chosen = o.rope.frequencies
        if o.rope.long_after is not None and last - first > o.rope.long_after:
            chosen = o.rope.long_frequencies
        speeds = np.array(chosen) if chosen is not None else o.rope.theta ** (-np.arange(0, rotary, 2) / rotary)

        def turned(vector: np.ndarray, place: int, speeds: np.ndarray = speeds) -> np.ndarray:
            pairs = vector[:rotary:2] + 1j * vector[1:rotary:2]
            pairs = pairs * np.exp(1j * place * speeds) * o.rope.attention_factor
            done = vector.copy()
            done[:rotary:2], done[1:rotary:2] = pairs.real, pairs.imag
            return done

        for t in range(first, last):
            heads = qkv[t].reshape(-1, d)
            for h in range(o.heads):
                query, group = turned(heads[h], t - first), h // (o.heads // o.kv_heads)
                start = first if o.window is None else max(first, t - o.window + 1)
                scores, values = [], []
                for s in range(start, t + 1):
                    other = qkv[s].reshape(-1, d)
                    score = query @ turned(other[o.heads + group], s - first)
                    score *= d**-0.5 if o.query_scale is None else o.query_scale
                    scores.append(score if o.soft_cap is None else o.soft_cap * math.tanh(score / o.soft_cap))
                    values.append(other[o.heads + o.kv_heads + group])
                if sinks is not None:
                    scores.append(float(sinks[h]))
                    values.append(np.zeros(d))
                shares = np.exp(scores - np.max(scores))
                out[t, h * d : (h + 1) * d] = shares / shares.sum() @ np.array(values)
    return out


@pytest.mark.parametrize(
    "changes",
    [{}, {"window": 3}, {"soft_cap": 2.0, "query_scale": 0.5}, {"rope": {"rotary_dim": 4, "theta": 100.0}},
     {"rope": {"frequencies": [0.5, 0.1, 0.02, 0.0], "attention_factor": 1.2}},
     {"rope": {"long_after": 5, "long_frequencies": [0.3, 0.2, 0.1, 0.05]}}, {"sinks": True, "window": 2}],
)  # fmt: skip
def test_the_proof_s_attention_is_the_definition_token_by_token(changes: dict[str, Any]) -> None:
    bounds, chosen = [0, 5, 12, 13], options(**changes)
    qkv = torch.randn(13, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bias = torch.randn(64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sinks = torch.linspace(-2, 2, chosen.heads) if chosen.sinks else None
    found = attention_by_definition(qkv, bounds, chosen, bias, sinks)
    slow = slowly((qkv + bias).numpy(), bounds, chosen, sinks)
    np.testing.assert_allclose(found.numpy(), slow, rtol=1e-9, atol=1e-12)
    plain = attention_by_definition(qkv, bounds, chosen, sinks=sinks)
    np.testing.assert_allclose(plain.numpy(), slowly(qkv.numpy(), bounds, chosen, sinks), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("moved", "place", "says"),
    [([0, 0, 0, 0], None, ""), ([0, 0, 0, 1], None, "another document"), ([0, 0, 1, 1], 2, ""),
     ([0, 1, 1, 1], 2, "comes 1 later"), ([1, 0, 1, 1], 2, "comes 2 later"), ([0, 0, 0, 1], 2, "its own token"),
     ([0, 0, 1, 0], 2, "the tokens before its own"), ([0, 1, 0, 1], 1, "")],
)  # fmt: skip
def test_what_a_segment_s_outputs_say(moved: list[int], place: int | None, says: str) -> None:
    with pytest.raises(ProofError, match=f"row 1: .*{says}") if says else contextlib.nullcontext():
        _require_segment(np.array(moved, bool), place, "row 1")


def test_another_token_is_one_of_the_batch_s_or_the_next() -> None:
    assert _another(np.array([5, 5, 7, 5]), 1, 9) == 7 and _another(np.array([5, 3, 7, 5]), 3, 9) == 7
    assert _another(np.array([8, 8]), 0, 9) == 0


# --- targets ---


def row(supervised: list[int] | None = None) -> SourceRow:
    marks = None if supervised is None else np.array(supervised)
    return SourceRow("a.txt:1", np.array([10, 11, 12, 13, 14, 15]), 1, 6, 9, marks)


def test_a_row_s_inputs_are_one_behind_its_targets() -> None:
    assert row().inputs.tolist() == [10, 11, 12, 13, 14] and row().targets.tolist() == [11, 12, 13, 14, 15]
    assert row([0, 0, 0, 1, 1, 0]).targets.tolist() == [-1, -1, 13, 14, -1]
    assert SourceRow("b", np.array([4, 5]), 0, 2, 9).inputs.tolist() == [9, 4]


@pytest.mark.parametrize(
    ("supervised", "targets", "says"),
    [
        (None, [11, 12, -1, 14, 15], "token 2 is not learned, and should be"),
        ([0, 0, 0, 1, 1, 1], [-1, 12, 13, 14, 15], "token 1 is learned, and should not be"),
        (None, [10, 11, 12, 13, 14], "the targets are the inputs"),
        (None, [12, 13, 14, 15, 15], "two tokens ahead"),
        ([0, 0, 0, 1, 1, 0], [-1, -1, 14, 15, -1], "two tokens ahead"),
        (None, [11, 12, 99, 14, 15], "target 2 is the token 99, the text goes on with 13"),
    ],
)
def test_the_usual_ways_in_which_targets_are_wrong_have_names(
    supervised: list[int] | None, targets: list[int], says: str
) -> None:
    assert says in _difference(row(supervised), np.array(targets), None)


def test_a_wrong_target_is_shown_behind_its_text() -> None:
    said = _difference(row(), np.array([11, 12, 99, 14, 15]), lambda ids: "/".join(map(str, ids)))
    assert said == "after '10/11/12' the target is '99', and the text continues with '13'"


def test_documents_are_inside_themselves_and_their_text_is_shown() -> None:
    whole = Batch(row().inputs, row().targets, np.array([0, 5], np.int32), np.arange(5))
    assert require_targets(whole, [row()]) == "1 rows"
    assert "is to answer '11 12 13 14 15'" in require_targets(whole, [row()], lambda ids: " ".join(map(str, ids)))
    for start, stop in ((-1, 4), (2, 2), (1, 7)):
        cut = SourceRow("a.txt:1", np.arange(6), start, stop, 9)
        with pytest.raises(ProofError, match=f"tokens {start} to {stop} of a.txt:1 are in the batch, and it has 6"):
            require_targets(whole, [cut])
    with pytest.raises(ProofError, match="a.txt:1: the targets are the inputs"):
        require_targets(replace(whole, targets=whole.inputs), [row()])


def test_only_text_that_says_so_is_encoded_again() -> None:
    def encode(text: str) -> np.ndarray:
        return np.array([ord(c) for c in text])

    def decode(ids: Any) -> str:
        return "".join(map(chr, ids))

    fine = SourceRow("a", np.array([97, 98, 0]), 0, 3, 0)  # the last id ends the document
    require_text([fine], decode, encode)
    with pytest.raises(ProofError, match="ids of a are not those of its text, which begins with 'ab'"):
        require_text([fine], decode, lambda text: encode(text)[::-1])
    broken = SourceRow("b", np.array([0xFFFD, 98, 0]), 0, 3, 0)
    long = SourceRow("c", np.full(4098, 97), 0, 3, 0)
    require_text([broken, long], decode, lambda text: np.array([]))
    with pytest.raises(ProofError):
        require_text([SourceRow("d", np.full(4097, 97), 0, 3, 0)], decode, lambda text: np.array([]))


# --- the step and the first loss ---


def test_the_first_tensors_take_the_step_where_all_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    for most, chosen in ((12, 1), (29, 1), (30, 2), (60, 3), (1, 1)):
        model: Any = torch.nn.ParameterDict({"a": torch.zeros(2, 10), "b": torch.zeros(10), "c": torch.zeros(30)})
        names = dict(model.named_parameters())
        monkeypatch.setattr(definition, "MOST_STEPPED", most)
        assert list(stepped(SimpleNamespace(trainable=lambda names=names: names))) == list("abc")[:chosen]  # type: ignore[arg-type]
        assert [p.requires_grad for p in names.values()] == [n < chosen for n in range(3)]


class Pays(NextToken):
    """Any loss, with a teacher that pays another."""

    nats: float = 0.0
    teacher: float | None = None

    def batch_loss(self, model: Any, batch: Batch) -> tuple[torch.Tensor, int]:
        return torch.tensor(self.nats * 10), 10

    def reference(self, model: Any, batch: Batch) -> tuple[float, int] | None:
        return None if self.teacher is None else (self.teacher * 4, 4)


def test_steps_of_finite_differences_are_smaller_where_the_loss_is_small() -> None:
    for tuned, mean, share in ((True, 3.0, 1.0), (True, 0.5, 1.0), (True, 0.25, 0.5), (False, 0.25, 1.0)):
        proof = proving._Proof(Recipe(Any, NextToken(), AdamW(), batch(), [], 64, tuned=tuned))  # type: ignore[arg-type]
        proof.mean = mean
        assert proof._rise == pytest.approx(share * (proving.IN_PLACE if tuned else proving.EXACT).rise)
        assert proof.bars is (proving.IN_PLACE if tuned else proving.EXACT)


@pytest.mark.parametrize(
    ("nats", "teacher", "tuned", "says"),
    [
        (math.log(64) * 1.09, None, False, ""),
        (math.log(64) * 1.11, None, False, "the first loss is"),
        (math.log(64) * 0.91, None, False, ""),
        (math.log(64) * 0.89, None, False, "the first loss is"),
        (math.log(64) * 1.24, None, True, ""),
        (math.log(64) * 1.26, None, True, "the base finds these rows less likely than guessing"),
        (1.0, math.log(64) * 1.24, True, ""),
        (1.0, math.log(64) * 1.26, True, "the teacher finds these rows less likely"),
        (0.9e-4, 1.0, True, "student and teacher already agree"),
        (1.1e-4, 1.0, True, ""),
        (1.0, 1.0, True, ""),
    ],
)
def test_the_first_loss_is_what_it_has_to_be(nats: float, teacher: float | None, tuned: bool, says: str) -> None:
    model: Any = SimpleNamespace()
    objective: Any = Pays(nats=nats, teacher=teacher)

    def checked() -> str:
        return require_first_loss(model, objective, batch(), [], 64, tuned)

    if says:
        with pytest.raises(ProofError, match=says):
            checked()
    else:
        assert f"{nats:.3f}" in checked()


def test_emulated_rounding_does_not_make_torch_import_its_compiler() -> None:
    """torch wraps the method of such a mode, and the wrapper's first call imports 75 MB."""
    assert not hasattr(EmulatedRounding.__torch_dispatch__, "__wrapped__")


@pytest.mark.parametrize("sides", [(3, 5, 4), (40, 5, 4), (3, 50, 4), (3, 5, 60), (30, 5, 60), (40, 50, 4)])
@pytest.mark.parametrize("large", [1, 7, 100, 10_000])
def test_large_operands_are_rounded_in_pieces(
    sides: tuple[int, int, int], large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute_type, "LARGE", large)
    m, k, n = sides
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, generator=draw, dtype=torch.float64) for size in ((m, k), (k, n)))
    half = [x.bfloat16().double() for x in (a, b)]
    wanted = (half[0] @ half[1]).bfloat16().double()
    with EmulatedRounding(torch.bfloat16, 0):
        plain, kept = a @ b, torch.mm(a, b, out=torch.empty(m, n, dtype=torch.float64))
    assert torch.equal(plain, wanted) and torch.equal(kept, wanted)
