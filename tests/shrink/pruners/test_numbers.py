"""How many parts go and which, by hand: no model is needed to see that."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from settle.base.errors import UsageError
from settle.model.architectures.llama import Llama
from settle.model.layers.linear import Stack
from settle.shrink.activations.importance import _drawn, observed
from settle.shrink.activations.layer_activations import eliminate, error, gram, refitted, ridged
from settle.shrink.pruners import FEWEST_WINDOWS, PASSES, kept_number, num_kept
from settle.shrink.pruners._columns import _better, spread_out
from settle.shrink.pruners.channels import Channels
from settle.shrink.pruners.depth import LEAST_TOKENS, Depth, _Order, _runs, _start, _turn, _within
from settle.shrink.pruners.heads import _groups, _of
from settle.shrink.pruners.vocabulary import VocabularyReport, _add, _number, _up
from settle.shrink.types.imatrix import Importance
from settle.shrink.types.quantize_file import _importance_of
from settle.shrink.types.sensitivity import _rows_to_see, _spread, candidates


@pytest.mark.parametrize(
    ("before", "share", "step", "left"),
    [
        (12, 0.25, 1, 9), (10, 0.01, 1, 9), (10, 0.99, 1, 1), (1536, 0.25, 256, 1024), (1536, 0.5, 256, 768),
        (1000, 0.25, 256, 752), (1024, 0.1, 256, 896), (7, 0.5, 4, 4),
        (2048, 0.25, 256, 1536), (576, 0.25, 256, 448), (48, 0.3, 256, 32), (30, 0.25, 1, 22), (2, 0.25, 1, 1),
        (128, 0.25, 256, 96),
    ],
)  # fmt: skip
def test_a_share_leaves_a_multiple_of_a_step(before: int, share: float, step: int, left: int) -> None:
    assert kept_number(before, share, step) == left


def test_what_cannot_be_kept_is_refused() -> None:
    with pytest.raises(UsageError, match="50% of 1 cannot be removed"):
        kept_number(1, 0.5)
    assert num_kept(512, 256, 0.9) == 256 and num_kept(512, None, 0.5) == 256
    for keep in (512, 600):
        with pytest.raises(UsageError, match=f"{keep} channels of 512 cannot be kept") as caught:
            num_kept(512, keep, 0.5)
        assert caught.value.fix == "keep at most 511"


def subject(numbers: int = 1000, layers: int = 4) -> Any:
    return SimpleNamespace(part=SimpleNamespace(num_non_embedding_parameters=numbers), num_layers=layers)


def test_as_many_windows_as_there_is_time_for() -> None:
    windows = [[0] * 10] * 20
    flops = 2 * PASSES * 1000
    pruner = Channels.model_validate({})
    assert len(pruner.affordable(subject(), windows, 100.0 * flops)[1]) == 10
    assert len(pruner.affordable(subject(), windows, 1.0 * flops)[1]) == FEWEST_WINDOWS
    assert pruner.affordable(subject(), windows) == (pruner, windows) and pruner.affordable(subject(), [], 1.0)[1] == []


def test_a_search_by_loss_needs_enough_tokens() -> None:
    """Each of 2 blocks that go is found by computing 4 blocks of 1000 weights again for each token."""
    windows, depth = [[0] * 400] * 8, Depth.model_validate({"drop": 2})
    each = 2 * 4 * 1000
    chosen, cut = depth.affordable(subject(), windows, (LEAST_TOKENS - 1) * each)
    assert chosen.by == "influence" and cut == windows
    chosen, cut = depth.affordable(subject(), windows, LEAST_TOKENS * each)
    assert chosen.by == "loss" and [len(window) for window in cut] == [64] * 8
    assert [len(window) for window in depth.affordable(subject(), windows, 1600 * each)[1]] == [200] * 8
    assert [len(w) for w in depth.affordable(subject(), windows * 4, 640 * each)[1]] == [64] * 10
    one = Depth.model_validate({})
    assert one.affordable(subject(), windows, LEAST_TOKENS * 4 * 1000)[0].by == "loss"


def test_which_blocks_may_be_left() -> None:
    assert _runs("abab", "ab") == [[2, 3], [0, 3], [0, 1]] and _runs("aab", "ba") == [] and _runs("abc", "abc")
    assert _within("ab", "xaxb") and not _within("ab", "ba") and not _within("aa", "ab") and _within("", "a")
    assert _start([0, 1, 4]) == 2 and _start([1, 2]) == 0 and _start([0, 1]) == 2
    ahead, aside = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert _turn(ahead, ahead * 3) == pytest.approx(0) and _turn(ahead, aside) == pytest.approx(0.5)


class Kinds:
    """An architecture whose layers are letters; shortened, it keeps the first ones."""

    model_type = "x"

    def __init__(self, kinds: str, of: str = "") -> None:
        self.kinds, self.of = kinds, of or kinds

    def options(self) -> Any:
        return SimpleNamespace(layers=tuple(self.kinds))

    def shortened(self, number: int) -> "Kinds":
        return Kinds(self.of[:number], self.of)

    def gguf_metadata(self) -> None:
        pass


def test_the_cheapest_block_that_may_go_goes_first() -> None:
    order = _Order(cast(Any, Kinds("aaaa")), 2)
    costs = {0: 3.0, 1: 1.0, 2: 2.0, 3: 0.5}
    asked: list[list[int]] = []

    def cost(layers: Any) -> dict[int, float]:
        asked.append(list(layers))
        return {i: costs[i] for i in layers}

    assert order.greedy(cost) == [0, 2] and asked == [[0, 1, 2, 3], [0, 1, 2]]
    mixed = _Order(cast(Any, Kinds("abab")), 2)  # a then b must be left
    assert mixed.greedy(lambda layers: dict(zip(range(4), (0.1, 9.0, 0.2, 0.3), strict=True))) == [2, 3]
    assert mixed.runs() == [[2, 3], [0, 3], [0, 1]]
    apart = _Order(cast(Any, Kinds("axbx", of="ab")), 2)
    assert apart.greedy(lambda layers: dict.fromkeys(layers, 0.0)) == [0, 2]
    with pytest.raises(UsageError, match="no 2 blocks in a row may go"):
        apart.runs()
    with pytest.raises(UsageError, match="llama.cpp loads no x of 2 blocks made of these 3") as caught:
        _Order(cast(Any, Kinds("bba", of="abb")), 2)
    assert caught.value.fix == "leave 1"


def test_columns_go_that_the_others_can_stand_in_for() -> None:
    """The third input is the sum of the first two, and hardly used: without it nothing is missed."""
    torch.manual_seed(0)
    x = torch.randn(200, 2)
    rows = torch.column_stack([x, x.sum(1), torch.randn(200)])
    weight = torch.tensor([[1.0, 2.0, 0.5, 3.0], [0.0, 1.0, 0.25, -1.0]])
    single, one = torch.arange(4).unsqueeze(1), torch.zeros(4, dtype=torch.long)
    found = eliminate(weight, gram([rows]), single, one, 3)
    assert 3 in found.kept.tolist() and len(found.kept) == 3
    assert error([rows], weight, [rows[:, found.kept]], found.weight) < 1e-3
    plain = error([rows], weight, [rows[:, found.kept]], weight[:, found.kept])
    assert plain > 10 * error([rows], weight, [rows[:, found.kept]], found.weight)
    pairs = eliminate(weight, gram([rows]), torch.tensor([[0, 1], [2, 3]]), torch.zeros(2, dtype=torch.long), 1)
    assert pairs.kept.tolist() == [2, 3]
    owned = eliminate(weight, gram([rows]), single, torch.tensor([0, 0, 1, 1]), 1)
    assert [sum(i in part for i in owned.kept.tolist()) for part in ((0, 1), (2, 3))] == [1, 1]


def test_means_of_products() -> None:
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert gram([a, b]).tolist() == [[10 / 3, 14 / 3], [14 / 3, 7.0]]
    assert gram([a], [torch.tensor([[5.0]])]).tolist() == [[5.0], [10.0]]
    assert ridged(torch.diag(torch.tensor([1.0, 3.0]).double())).diagonal().tolist() == pytest.approx([1.02, 3.02])


def test_a_refitted_matrix_does_what_the_old_one_did() -> None:
    torch.manual_seed(1)
    old = torch.randn(300, 3)
    turn = torch.randn(3, 3)
    weight = torch.randn(2, 3)
    new = old @ turn
    found = refitted(weight, gram([new]), gram([new], [old]), torch.zeros(2, 3))
    assert error([old], weight, [new], found) < 0.01
    exact = weight @ torch.linalg.inv(turn).T
    near = refitted(weight, gram([new]), gram([new], [old]), exact)
    assert error([old], weight, [new], near) < 1e-8  # what it is kept to is the solution
    assert error([old], weight, [old], 0 * weight) == pytest.approx(1.0)


def test_what_is_fitted_is_taken_where_it_helps() -> None:
    held = [torch.eye(3)]
    old = torch.tensor([[1.0, 2.0, 3.0]])
    kept, worse, better = torch.tensor([1, 2]), torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 3.0]])
    matrix, miss, helps = _better(old, kept, worse, held, True)
    assert matrix.tolist() == [[2.0, 3.0]] and not helps and miss == pytest.approx(1 / 14)
    turned = _better(old, torch.tensor([0, 1]), torch.tensor([[1.0, 2.0]]), [torch.tensor([[1.0, 1.0, 0.0]])], True)
    assert not turned[2] and turned[1] == 0.0  # as good is not better
    text = [torch.tensor([[0.0, 1.0, 1.0]])]
    fitted = _better(old, torch.tensor([1]), torch.tensor([[5.0]]), text, True)
    assert fitted[2] and fitted[1] == 0.0 and fitted[0].tolist() == [[5.0]]
    assert not _better(old, torch.tensor([1]), torch.tensor([[5.0]]), text, False)[2]
    assert not _better(old, torch.tensor([1]), torch.tensor([[5.0]]), [], True)[2] and better.shape == (1, 2)
    assert spread_out(better, kept, 4).tolist() == [[0.0, 2.0, 3.0, 0.0]]


def test_heads_go_in_groups_or_as_queries() -> None:
    o: Any = SimpleNamespace(heads=4, kv_heads=2, head_dim=3)
    groups, owners = _groups(o, "groups")
    assert groups.tolist() == [list(range(6)), list(range(6, 12))] and owners.tolist() == [0, 0]
    groups, owners = _groups(o, "queries")
    assert groups.shape == (4, 3) and owners.tolist() == [0, 0, 1, 1]
    assert _of([0, 2], 3).tolist() == [0, 1, 2, 6, 7, 8]


def test_further_tokens_are_kept_until_little_is_missing() -> None:
    counts = np.array([90, 4, 3, 2, 1, 0])
    more = [5, 0, 1, 2, 3, 4]
    assert _number({0}, more, counts, 0.05) == 4  # ten are missing; of ids 1 and 2 so many are left that five may be
    assert _number({0}, more, counts, 0.1) == 0 and _number({0}, more, counts, 0.0) == 6
    assert _number({0}, [1, 5], counts, 0.0) == 1  # if all are too few, as many as help
    kept = {1}
    _add(kept, {1, 2}, 2)
    assert kept == {1, 2}
    _add(kept, {2, 3}, 2)
    assert kept == {1, 2} and (_up(1), _up(64), _up(65)) == (64, 64, 128)


@pytest.mark.parametrize(
    ("share", "says"), [(0.003, ""), (0.0031, "0.3% of the tokens"), (None, "an unknown share of")]
)
def test_a_text_that_is_too_short_is_said(share: float | None, says: str) -> None:
    report = VocabularyReport((100, 50), 10, 20, 3000, 5, share)
    assert report.warning.startswith(says) and bool(report.warning) == bool(says)
    assert ("warning" in report.to_json()) == bool(says) and report.to_json()["tokens"] == [100, 50]
    assert not says or "the text has only 3,000 tokens" in report.warning


def test_rows_are_seen_as_often_as_they_matter() -> None:
    """Every estimate is right on average: what a row is worth is one over how often it is drawn."""
    few, worth = _rows_to_see(np.ones((64, 32)), np.ones((64, 1)), 1, 0)
    assert few.tolist() == list(range(64)) and set(worth) == {1.0}
    bends = np.concatenate([np.full((128, 1), 9.0), np.zeros((128, 1))])
    values = np.ones((256, 32), np.float32)
    for seed in range(3):
        chosen, worth = _rows_to_see(values, bends, 64 * 32, seed)
        assert sum(chosen < 128) > 9 * sum(chosen >= 128) and sum(chosen >= 128) >= 2
        assert worth[chosen < 128].sum() == pytest.approx(128, rel=0.1)
        assert worth[chosen >= 128].sum() == pytest.approx(128, rel=0.5)
    assert len(_rows_to_see(values, bends, 128 * 32, 0)[0]) > len(chosen)
    none, _ = _rows_to_see(values, bends * 0, 64 * 32, 0)
    assert len(none) == 64 and none[0] < 8 and none[-1] > 247  # where nothing is known, evenly
    # of rows of two blocks those matter whose second block is read, by what is in that one
    wide = np.ones((256, 64), np.float32)
    wide[:200, 32:] = 0.01
    chosen, _ = _rows_to_see(wide, np.tile([0.0, 1.0], (256, 1)), 64 * 64, 0)
    assert sum(chosen >= 200) > 45 > sum(chosen < 200) > 2


def test_a_block_s_worth_is_spread_by_its_inputs() -> None:
    means = np.concatenate([np.arange(32.0), np.zeros(32)])
    found = _spread(np.array([[496.0, 32.0], [0.0, 64.0]]), means)
    assert found.shape == (2, 64)
    assert found[0, :32] == pytest.approx(np.arange(32.0)) and found[0, 32:] == pytest.approx(1.0)
    assert found[1, :32].sum() == 0 and found[1, 32:] == pytest.approx(2.0)


def test_a_model_is_observed_only_for_as_long_as_asked() -> None:
    model = Llama.TINY.build(0)
    stacks = [s for module in model.modules() for s in vars(module).values() if isinstance(s, Stack)]
    with observed(model, lambda linears, x: None):
        assert stacks and all({"linear", "gated", "norm_linear", "linear_add"} <= set(vars(s)) for s in stacks)
    assert not any({"linear", "gated", "norm_linear", "linear_add"} & set(vars(s)) for s in stacks)


def test_a_token_is_drawn_by_its_chance() -> None:
    """Chances need not add up to 1; what has none is never drawn."""
    likely = torch.tensor([[0.0, 1.0, 0.0, 3.0]]).repeat(4000, 1)
    drawn = _drawn(likely, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {1, 3} and float((drawn == 3).float().mean()) == pytest.approx(0.75, abs=0.03)


def test_importance_fits_the_inputs_of_its_tensor() -> None:
    def found(means: np.ndarray, shape: tuple[int, ...], name: str = "a", kind: str = "Q4_K") -> np.ndarray | None:
        tensor: Any = SimpleNamespace(name=name, shape=shape, dtype="F16")
        return _importance_of(tensor, kind, Importance({name: means}, 1, []))

    assert found(np.arange(4.0), (2, 4)).tolist() == [[0.0, 1.0, 2.0, 3.0]]  # type: ignore[union-attr]
    assert found(np.arange(6.0), (3, 2, 2)).shape == (3, 2)  # type: ignore[union-attr]
    assert found(np.arange(4.0), (2, 4), kind="F16") is None
    assert found(np.arange(3.0), (2, 4), name="token_embd.weight") is None
    for means, says in ((np.arange(3.0), "has 3 values, the tensor takes 4 inputs"), (np.full(4, np.nan), "holds NaN")):
        with pytest.raises(UsageError, match=says):
            found(means, (2, 4))


def test_types_that_a_tensor_can_have() -> None:
    def of(row: int, **more: Any) -> list[str]:
        return candidates(cast(Any, SimpleNamespace(shape=(4, row), dtype="F16")), ("Q4_K", "Q8_0", "IQ2_XS"), **more)

    assert of(256) == ["IQ2_XS", "Q4_K", "Q8_0"] and of(32) == ["Q8_0"] and of(7) == ["F16"]
    assert of(256, has_importance=False) == ["Q4_K", "Q8_0"]
