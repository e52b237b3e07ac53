"""From a budget to a file, over files whose size, loss and speed the test makes up."""

import contextlib
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from settle.base.errors import ResourceError
from settle.base.event_log import Events
from settle.base.statistics import Interval
from settle.evaluate.divergence import Divergence
from settle.evaluate.footprint import Footprint, Measured
from settle.formats.gguf.types import ggml_type
from settle.shrink import candidates as candidates_module
from settle.shrink.candidates import Candidates, ShrinkCandidate, ThroughputModel, bytes_read
from settle.shrink.quantizers import Quantizer
from settle.shrink.search import (
    SearchedSize,
    _between,
    _crossing,
    best_at_speed,
    best_within_size,
    find_size,
    predicted_speeds,
    routes,
    smallest_within_loss,
)
from settle.shrink.session import batches
from settle.shrink.types import budget as budgets
from settle.shrink.types.budget import CostTable, _unit, _useful, _within
from tests.records import into

MB = 1_000_000


def lost(kl: float, rise: float = 0.0, spread: float = 0.0, reference_loss: float = 2.0) -> Divergence:
    same = Interval(0.9, 0.8, 0.95)
    ends = Interval(kl, kl - spread, kl + spread), Interval(rise, rise - spread, rise + spread)
    return Divergence(3, 100, 400, ends[0], 0.5, 0.7, same, reference_loss * (1 + rise), reference_loss, ends[1])


def quick(speed: float) -> Footprint:
    median = Measured(speed, speed, speed)
    return Footprint(1, median, 77, median, median, 128, 3)


class Files:
    """Files from 20 to 100 MB in steps of 1: half a nat is lost at 20 MB, a tenth of that with every 20 MB more; a file
    of 20 MB writes 50 tokens a second, and one of 100 MB writes 10. Mixes lose twice as much as predicted."""

    smallest, largest = 20 * MB, 100 * MB
    mixes = {"Q8_0": 90, "Q4_K_M": 50, "Q4_K_S": 48, "Q2_K": 19}

    def __init__(self, mix_gain: float = 2.0) -> None:
        self.measured: list[str] = []
        self.timed: list[int] = []
        self.mix_gain = mix_gain
        logprobs = np.full(10, -2.0)
        file = SimpleNamespace(tensors={"a": SimpleNamespace(dtype="F16"), "b": SimpleNamespace(dtype="F32")})
        likely = SimpleNamespace(came_logprobs=logprobs)
        model = SimpleNamespace(source=SimpleNamespace(name="m"), likelihoods=likely, file=file)
        self.session = SimpleNamespace(model=model)

    def loss(self, num_bytes: int) -> float:
        return 0.5 * 10 ** (-(num_bytes / MB - 20) / 20)

    def of_size(self, num_bytes: int) -> ShrinkCandidate:
        size = num_bytes // MB * MB
        return ShrinkCandidate(f"auto {size // MB}", {"a": f"A{size // MB}"}, size, predicted=self.loss(size))

    def of_mix(self, mix: str) -> ShrinkCandidate:
        size = self.mixes.get(mix, 200) * MB
        kinds = {"a": mix} if mix in self.mixes else {"a": "Q8_0"}  # most mixes are the same file here
        return ShrinkCandidate(mix, kinds, size, mix, self.loss(size))

    def measure(self, candidate: ShrinkCandidate) -> ShrinkCandidate:
        self.measured.append(candidate.name)
        kl = (candidate.predicted or 0.0) * (self.mix_gain if candidate.mix else 1.0)
        return replace(candidate, divergence=lost(kl))

    def time(self, candidate: ShrinkCandidate) -> ShrinkCandidate:
        self.timed.append(candidate.num_bytes // MB)
        return replace(candidate, footprint=quick(1000 * MB / candidate.num_bytes))

    def bytes_read(self, candidate: ShrinkCandidate) -> int:
        return candidate.num_bytes


def files(**more: Any) -> Any:
    return Files(**more)


def test_the_best_of_a_size_is_measured_against_the_best_mix_that_fits() -> None:
    all_of = files()
    assert best_within_size(all_of, 49 * MB + 5).name == "auto 49" and all_of.measured == ["auto 49", "Q4_K_S"]
    assert best_within_size(files(mix_gain=0.5), 50 * MB).name == "Q4_K_M"
    small = files()
    assert best_within_size(small, 20 * MB).num_bytes == 20 * MB and small.measured == ["auto 20", "Q2_K"]
    with pytest.raises(ResourceError, match="no file of m is as small as 19.9 MB: the nearest is 20 MB") as caught:
        best_within_size(files(), 19_900_000)
    assert caught.value.fix.startswith("--to 20MB, or prune")


@pytest.mark.parametrize(("share", "size"), [(0.025, 40), (0.1, 28), (0.0025, 60)])
def test_the_smallest_file_that_loses_no_more(share: float, size: int) -> None:
    """A KL of 0.05 of a loss of 2 is 2.5 %: that is what the file of 40 MB loses."""
    all_of = files()
    found = smallest_within_loss(all_of, share)
    assert found.num_bytes == size * MB and found.loss_share <= share * (1 + 1e-9)
    assert all_of.measured[0] == found.name and len(all_of.measured) <= 5  # begun where it is predicted to be reached


def test_a_loss_that_no_file_keeps_to_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        ResourceError, match=r"loses more than 0.00%: the nearest is auto 100, 0.00% at worst"
    ) as caught:
        smallest_within_loss(files(), 1e-6)
    assert caught.value.fix.startswith("--lose 0.0025%, or judge it by more text")


@pytest.mark.parametrize(("speed", "size", "guess"), [(19.9, 50, 49), (30.0, 33, 29), (11.0, 90, 97)])
def test_the_best_file_that_is_fast_enough(speed: float, size: int, guess: int) -> None:
    """Begun in the middle; the second is what one measurement predicts."""
    all_of = files()
    found = best_at_speed(all_of, speed)
    assert found.num_bytes == size * MB and found.divergence is not None and found.footprint is not None
    assert found.footprint.speed.median >= speed and all_of.timed[:2] == [60, guess]
    assert len(all_of.timed) <= 9
    assert all_of.measured == [found.name]


def test_a_speed_that_no_file_has_is_refused_with_the_fastest() -> None:
    with pytest.raises(
        ResourceError, match="writes 51 tokens a second here: the fastest is auto 20 with 50.0"
    ) as caught:
        best_at_speed(files(), 51.0)
    assert caught.value.fix.startswith("--speed 50, or prune")


def test_routes_are_every_file_once_largest_first() -> None:
    all_of = files()
    found = [candidate.name for candidate in routes(all_of)]
    sizes = [candidate.num_bytes for candidate in routes(all_of)]
    assert sizes == sorted(sizes, reverse=True)
    assert set(Files.mixes) <= set(found) and sum(name.startswith("auto") for name in found) == 5 and len(found) == 9
    # of choices that differ by less than a percent only the smallest comes
    near = files()
    near.mixes = {"Q8_0": 100, "Q6_K": 101, "Q5_K_M": 102}
    assert [c.name for c in routes(near) if c.name.startswith("auto")] == ["auto 200", "auto 102", "auto 100"]


def test_speeds_are_predicted_by_what_a_token_reads() -> None:
    throughput = ThroughputModel(per_byte=1e-9, fixed=0.0)
    assert predicted_speeds(files(), [files().of_size(50 * MB)], throughput) == {"auto 50": 20.0}


def test_halving_finds_where_a_figure_turns() -> None:
    for turn in (20, 33, 61, 100):
        assert abs(_crossing(files(), lambda size, turn=turn: size < turn * MB) - turn * MB) <= 80 * MB / 4096 + 1  # type: ignore[misc]


def test_a_search_asks_for_few_sizes() -> None:
    """Straight in the logarithm: the second measurement that lies between two others is beside the crossing."""
    asked: list[int] = []

    def measure(size: int) -> SearchedSize:
        asked.append(size)
        return SearchedSize(size, 10 ** (-size / 1000))

    found = find_size(measure, 1000, 9000, 1e-4, guess=2000, tolerance=0.01)
    assert found.above is not None and found.within is not None
    assert asked[:3] == [2000, 9000, 4000] and len(asked) == 4
    assert found.within.num_bytes <= found.above.num_bytes * 1.01 and found.within.num_bytes == 4000
    asked.clear()
    find_size(measure, 1000, 9000, 1e-4)
    assert asked[0] == 3000  # the geometric mean, where nothing is known
    asked.clear()
    find_size(measure, 1000, 9000, 1e-4, guess=99_999, most=1)
    assert asked == [9000]


@pytest.mark.parametrize(
    ("above", "within", "wanted", "size"),
    [
        (SearchedSize(1000, 100.0), SearchedSize(2000, 1.0), 10.0, 1500),  # half of the way of the logarithm
        (SearchedSize(1000, 100.0), SearchedSize(2000, 1.0), 100.0, 1009),  # a little beyond an end
        (SearchedSize(1000, 100.0), SearchedSize(2000, 1.0), 1.0, 1991),
        (SearchedSize(1000, 5.0), SearchedSize(2000, 5.0), 5.0, 1500),  # nothing to tell by
        (SearchedSize(1000, 100.0), SearchedSize(1001, 1.0), 10.0, 1000),
    ],
)
def test_between_two_sizes(above: SearchedSize, within: SearchedSize, wanted: float, size: int) -> None:
    assert _between(above, within, wanted, 0.01) == size


def session(**more: Any) -> Any:
    """Two matrices with a choice, and 100 bytes beside them."""
    sizes = {"x": {"Q8_0": 80, "Q4_K": 40}, "y": {"Q8_0": 800, "Q4_K": 400}}
    costs = CostTable({"x": {"Q8_0": 0.1, "Q4_K": 0.2}, "y": {"Q8_0": 0.01, "Q4_K": 0.4}}, sizes)
    written: list[Any] = []

    @contextlib.contextmanager
    def candidate_file(kinds: Any) -> Any:
        written.append(dict(kinds))
        yield Path("made")

    def file_bytes(kinds: Any) -> int:
        return 100 + sum(sizes[name][kinds.get(name, "Q8_0")] for name in sizes)

    heard: list[Any] = []
    model = SimpleNamespace(
        costs=costs, events=Events(listeners=[into(heard)]), divergence=lambda path: lost(0.25, 0.125), threads=1,
        file=SimpleNamespace(tensors={}, metadata={}),
    )  # fmt: skip
    whole = SimpleNamespace(kinds={"F16": 5, "F32": 2}, source=SimpleNamespace(path=Path(__file__)))
    return SimpleNamespace(
        model=model, candidate_file=candidate_file, file_bytes=file_bytes, before_cut=None, whole=whole,
        written=written, heard=heard, **more,
    )  # fmt: skip


class Choosing:
    def choose_types(self, model: Any, num_bytes: int) -> dict[str, str]:
        return {"x": "Q4_K", "y": "Q8_0"} if num_bytes > 900 else {"x": "Q4_K", "y": "Q4_K"}

    def part_name(self) -> str:
        return "auto"


def made(of: Any = None) -> Candidates:
    return Candidates(of or session(), cast(Any, Choosing()))


def test_a_candidate_has_its_exact_size_and_its_prediction() -> None:
    found = made().of_size(1000)
    assert found == ShrinkCandidate("auto 0.9 kB", {"x": "Q4_K", "y": "Q8_0"}, 940, None, pytest.approx(0.21))
    large = session()
    large.file_bytes = lambda kinds: 12_340_000
    assert made(large).of_size(0).name == "auto 12.3 MB"
    large.file_bytes = lambda kinds: 9_999_999
    assert made(large).of_size(0).name == "auto 10,000.0 kB"
    assert made().unchanged() == ShrinkCandidate("as it is", {}, 980)
    assert (made().smallest, made().largest) == (100 + 440, 100 + 880)


def test_the_reference_is_the_model_as_it_was_given() -> None:
    footprint = quick(5.0)
    found = made().reference(footprint)
    assert (found.name, found.predicted, found.footprint) == ("F16", 0.0, footprint)
    assert found.num_bytes == Path(__file__).stat().st_size
    cut = session()
    cut.before_cut = (1, 2)
    assert made(cut).reference().name == "F16, whole"


def test_a_candidate_is_measured_and_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates_module, "footprints", lambda paths, threads: [quick(7.0)])
    all_of, candidate = made(), made().of_size(1000)
    measured = all_of.measure(candidate)
    assert measured.divergence == lost(0.25, 0.125) and all_of.measure(candidate) is measured
    assert all_of.session.heard[0]["text"] == (  # type: ignore[attr-defined]
        "auto 0.9 kB: 940 B, KL 0.25 nats per token, the loss changes by +12.50%"
    )
    timed = all_of.time(candidate)
    assert timed.footprint == quick(7.0) and timed.divergence == measured.divergence and all_of.time(candidate) is timed
    assert all_of.session.written == [candidate.kinds] * 2  # type: ignore[attr-defined]


def test_what_a_file_loses_is_the_larger_of_two_at_worst() -> None:
    candidate = ShrinkCandidate("x", {}, 1)
    assert replace(candidate, divergence=lost(0.1, 0.04)).loss_share == pytest.approx(0.05)
    assert replace(candidate, divergence=lost(0.1, 0.06)).loss_share == pytest.approx(0.06)
    assert replace(candidate, divergence=lost(0.1, 0.06, spread=0.01)).loss_share == pytest.approx(0.07)
    assert replace(candidate, divergence=lost(-0.1, -0.2)).loss_share == 0.0
    unbounded = replace(lost(0.1, 0.04), rise=Interval(0.04, -float("inf"), float("inf")))
    assert replace(candidate, divergence=unbounded).loss_share == pytest.approx(0.05)


def test_a_point_is_what_was_measured_or_else_predicted() -> None:
    candidate = ShrinkCandidate("x", {}, 9, predicted=0.3)
    guess = candidate.point(12.0)
    assert (guess.kl, guess.low, guess.speed, guess.predicted, guess.peak_bytes) == (0.3, None, 12.0, True, None)
    assert not ShrinkCandidate("x", {}, 9, predicted=0.0).point().predicted
    point = replace(candidate, divergence=lost(0.2, 0.1, 0.05), footprint=quick(8.0)).point(12.0, chosen=True)
    assert (point.kl, point.low, point.high, point.rise, point.same_top) == (0.2, 0.2 - 0.05, 0.25, 0.1, 0.9)
    assert (point.speed, point.peak_bytes, point.predicted, point.chosen) == (8.0, 77, False, True)
    assert replace(candidate, divergence=lost(0.2)).point(12.0).speed is None  # measured, but not its speed
    assert replace(candidate, divergence=lost(-0.2)).point().kl == 0.0


def test_a_choice_comes_back_from_the_plan() -> None:
    candidate = ShrinkCandidate("x", {"a": "Q4_K"}, 9, "Q4_K_M", 0.5, lost(0.1), quick(1.0))
    stored = candidate.to_json()
    back = ShrinkCandidate.from_json(stored | {"kinds": candidate.kinds})
    assert back == ShrinkCandidate("x", {"a": "Q4_K"}, 9, "Q4_K_M", 0.5)
    assert ShrinkCandidate.from_json({"name": "x", "kinds": {}, "bytes": 9}).mix is None
    for wrong in ({"kinds": []}, {"predicted_kl": "x"}):
        with pytest.raises(ValueError, match="valid"):
            ShrinkCandidate.from_json(stored | {"kinds": {}} | wrong)
    assert stored["selection"] is None and stored["footprint"] == quick(1.0).to_json()


def table() -> CostTable:
    return CostTable(
        {"a": {"S": 1.0, "L": 0.25}, "b": {"S": 2.0}}, {"a": {"S": 10, "L": 30}, "b": {"S": 5}}, {"seed": 3}
    )


def test_a_table_of_costs(tmp_path: Path) -> None:
    assert table().predicted({"a": "L", "b": "S"}) == 2.25 and table().predicted({"b": "other"}) == 0
    left = table().without(frozenset({"S"}))
    assert left.costs == {"a": {"L": 0.25}, "b": {"S": 2.0}} and left.num_bytes == {"a": {"L": 30}, "b": {"S": 5}}
    table().save(tmp_path / "t.json")
    assert CostTable.open(tmp_path / "t.json") == table()


def test_only_types_that_are_smaller_or_better_are_weighed() -> None:
    costs, sizes = {"a": 3.0, "b": 2.0, "c": 2.0, "d": 1.0, "e": 1.5}, {"a": 1, "b": 2, "c": 3, "d": 4, "e": 4}
    assert _useful(costs, sizes) == [(1, "a"), (2, "b"), (4, "d")]
    assert _unit([0, 340, 68], 10**6, 3) == 68 and _unit([0], 5, 1) == 1
    assert _unit([3, 7], 1 << 20, 4) == 16 and _unit([3, 7], 1 << 20, 1 << 14) == 4


def test_padding_is_made_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are 7 bytes larger than their tensors: less is spent until the file fits."""

    monkeypatch.setattr(
        budgets, "file_bytes", lambda file, kinds: 7 + sum(table().num_bytes[n][kinds[n]] for n in kinds)
    )
    assert _within(cast(Any, None), table(), 42, 42) == {"a": "L", "b": "S"}
    assert _within(cast(Any, None), table(), 41, 41) == {"a": "S", "b": "S"}


def test_windows_are_grouped_by_their_tokens() -> None:
    windows = [np.zeros(n) for n in (3, 3, 4, 9, 1)]
    assert [[len(w) for w in group] for group in batches(windows, 6)] == [[3, 3], [4], [9], [1]]
    assert [[len(w) for w in group] for group in batches(windows, 10)] == [[3, 3, 4], [9, 1]]


def weights(*tensors: tuple[str, str, tuple[int, ...]], **metadata: Any) -> Any:
    found = {
        name: SimpleNamespace(dtype=kind, shape=shape, num_bytes=ggml_type(kind).num_bytes(shape))
        for name, kind, shape in tensors
    }
    return SimpleNamespace(tensors=found, metadata={"general.architecture": "m"} | metadata)


def test_a_token_reads_what_it_needs() -> None:
    embedding, head, other = (
        ("token_embd.weight", "F16", (4, 32)), ("output.weight", "F16", (4, 32)), ("a", "F16", (2, 32)),
    )  # fmt: skip
    assert bytes_read(weights(embedding, head, other), {}) == 256 + 128
    assert bytes_read(weights(embedding, other), {}) == 256 + 128  # a tied head reads the table
    assert bytes_read(weights(head, other), {"output.weight": "Q8_0"}) == 4 * 34 + 128
    experts = weights(("a_exps.weight", "F32", (8, 2, 32)), other, **{"m.expert_count": 8, "m.expert_used_count": 2})
    assert bytes_read(experts, {}) == 8 * 2 * 32 * 4 // 4 + 128


def noting(value, step=1):
    asked = []

    def measure(size):
        asked.append(size)
        size = size // step * step
        return SearchedSize(size, value(size))

    return measure, asked


@pytest.mark.parametrize("wanted", [0.02, 0.2, 0.9])
def test_a_crossing_is_found_within_the_tolerance(wanted):
    measure, asked = noting(lambda size: math.exp(-size / 250e6) + 1e-4 * (1e9 - size) / 1e9)
    found = find_size(measure, 10_000_000, 2_000_000_000, wanted)
    assert found.above.value > wanted >= found.within.value
    assert found.within.num_bytes <= found.above.num_bytes * 1.01
    assert len(asked) <= 7


def test_no_size_is_on_one_side():
    measure, asked = noting(lambda size: 1 / size)
    nothing = find_size(measure, 100, 1000, 1e-9)
    assert nothing.within is None and nothing.above.num_bytes == 1000
    everything = find_size(measure, 100, 1000, 10.0)
    assert everything.above is None and everything.within.num_bytes == 100
    assert len(asked) == 4


def test_sizes_come_in_steps():
    measure, asked = noting(lambda size: 1000 - size, step=100)
    found = find_size(measure, 100, 900, 450, tolerance=0.0)
    assert (found.above.num_bytes, found.within.num_bytes) == (500, 600)
    assert len(asked) <= 8


def test_a_guess_comes_first_and_noise_lets_no_small_file_pass():
    values = {100: 0.3, 200: 0.09, 300: 0.12, 400: 0.05}
    asked = []

    def measure(size):
        asked.append(size)
        nearest = min(values, key=lambda known: abs(known - size))
        return SearchedSize(nearest, values[nearest])

    found = find_size(measure, 100, 400, 0.1, guess=290, tolerance=0.0)
    assert asked[0] == 290
    assert found.within.num_bytes == 400 and found.above.num_bytes == 300


def measured_in(dtype: str) -> Candidates:
    """Two files that were measured, of a model in that type: predicted 0.02 and 0.04, measured three times that."""
    file = SimpleNamespace(tensors={"a": SimpleNamespace(dtype=dtype)}, metadata={})
    session: Any = SimpleNamespace(model=SimpleNamespace(file=file))
    made = Candidates(session, cast(Quantizer, None))
    for predicted in (0.02, 0.04):
        measured = cast(Divergence, SimpleNamespace(kl=SimpleNamespace(value=3 * predicted)))
        made.known[f"{predicted}"] = ShrinkCandidate(f"{predicted}", {}, 1, predicted=predicted, divergence=measured)
    return made


def test_the_forecast_of_a_requantized_file_is_what_others_cost() -> None:
    of = measured_in("Q4_1")
    assert of.expected_kl(ShrinkCandidate("new", {}, 1, predicted=0.047)) == pytest.approx(0.141)
    assert of.expected_kl(of.known["0.02"]) == pytest.approx(0.06)  # its own measurement is no forecast


def test_the_forecast_of_a_whole_model_is_its_prediction() -> None:
    assert measured_in("F16").expected_kl(ShrinkCandidate("new", {}, 1, predicted=0.047)) == 0.047


def test_two_files_tell_of_a_third():
    law = ThroughputModel(per_byte=1e-10, fixed=2e-3)
    sizes = (270_000_000, 100_000_000, 80_000_000)
    pace = ThroughputModel.fit([(size, law.tokens_per_second(size)) for size in sizes[:2]])
    assert pace.tokens_per_second(sizes[2]) == pytest.approx(100.0)
    assert pace.most_bytes(100.0) == pytest.approx(sizes[2], rel=1e-6)
    assert pace.most_bytes(1000.0) == 0


def test_one_file_or_contradicting_ones_still_give_an_estimate_through_the_first():
    for measured in ([(100_000_000, 50.0)], [(100_000_000, 50.0), (50_000_000, 40.0)], [(100_000_000, 50.0)] * 2):
        pace = ThroughputModel.fit(measured)
        assert pace.tokens_per_second(100_000_000) == pytest.approx(50.0)
        assert 50.0 < pace.tokens_per_second(50_000_000) < 100.0
