import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from settle.base.event_log import Events
from settle.base.events import DecayStarted, Eval, LossForecast, Rollback
from settle.plan.loss_curve import CurveFacts, CurveForm, CurvePrior, Observation, binned, recorded
from settle.plan.loss_law import worth
from settle.plan.outlook import CurveStart, Outlook

RECORDED = Path(__file__).parents[2] / "bench" / "recorded"
FACTS = CurveFacts(
    parameters=60_000,
    unique=10**9,
    bytes_per_token=2.5,
    vocab_size=512,
    tokens_per_step=1024,
    ngrams=[(4096.0, 4.6), (65536.0, 3.9), (1048576.0, 3.4)],
)
PRIOR = CurvePrior(
    form=CurveForm(slowing=0.2, decay_power=0.5),
    mean=np.column_stack([[1.5, 0.1, 0.3, 0.03, -0.02, 0.05], np.zeros((6, 5))]),
    spread=np.array([0.2, 0.03, 0.1, 0.01, 0.01, 0.02]),
    correlation=0.3,
    drift=0.01,
    noise_decayed=0.004,
    noise_constant=0.006,
)


def draw(random: np.random.Generator, seen: list[Observation]) -> list[Observation]:
    """The observations with losses of one curve of the prior."""
    mean = PRIOR.design(FACTS, seen) @ (PRIOR.mean @ FACTS.vector())
    losses = np.exp(random.multivariate_normal(mean, PRIOR.covariance((FACTS, seen))))
    return [replace(o, loss=float(loss)) for o, loss in zip(seen, losses, strict=True)]


def test_intervals_hold_the_share_of_curves_that_they_claim_and_narrow_as_a_run_goes_on():
    random = np.random.default_rng(5)
    probes = [Observation(t, 1.0, decay=0.4) for t in (15e3, 40e3)]
    trunk = [Observation(2e4 * 1.2**i, 1.0, decay=0.0) for i in range(21)]
    end = Observation(1.6e6, 1.0, decay=0.4)
    inside, widths = [], []
    for _ in range(300):
        *seen, came = draw(random, [*probes, *trunk, end])
        before, later = PRIOR.after(FACTS, seen[:2], 1.6e6), PRIOR.after(FACTS, seen, 1.6e6, under_way=True)
        inside.append((before.contains(came.loss), later.contains(came.loss)))
        widths.append((before.log_std, later.log_std))
    coverage = np.mean(inside, axis=0)
    assert np.all(coverage > 0.73) and np.all(coverage < 0.87)
    assert np.mean(widths, axis=0)[1] < 0.6 * np.mean(widths, axis=0)[0]


def test_what_a_change_saves_lies_inside_its_interval_as_often_as_claimed():
    random, end = np.random.default_rng(6), Observation(4e5, 1.0, decay=0.4)
    prior = replace(PRIOR, between=0.02)
    probes = [Observation(t, 1.0, decay=0.4) for t in (15e3, 40e3)]
    others = [
        (FACTS, replace(end, tokens=8e5)),
        (replace(FACTS, unique=2 * FACTS.unique), end),
        (replace(FACTS, parameters=2 * FACTS.parameters), end),
    ]
    for facts, later in others:
        inside, runs = [], ((FACTS, [*probes, end]), (facts, [later]))
        mean = np.concatenate([prior.design(f, seen) @ (prior.mean @ f.vector()) for f, seen in runs])
        for _ in range(300):
            losses = np.exp(random.multivariate_normal(mean, prior.covariance(*runs)))
            seen = [replace(o, loss=float(loss)) for o, loss in zip(probes, losses[:2], strict=True)]
            inside.append(prior.change(FACTS, seen, end, facts, later).contains(1 - losses[3] / losses[2]))
        assert 0.73 < np.mean(inside) < 0.87
    # what runs do not share is all that two alike in everything else are apart
    told = prior.change(FACTS, seen, end, others[2][0], end)
    least = 2 * 1.28 * math.hypot(0.02 * math.log(2), 1.4 * PRIOR.noise_decayed)
    assert least < told.high - told.low < 2 * least


def test_what_widens_an_interval():
    seen = [Observation(15e3, 5.0, decay=0.4), Observation(40e3, 4.5, decay=0.4)]
    widths = [PRIOR.after(FACTS, seen, tokens).log_std for tokens in (5e4, 2e5, 2e6, 2e7)]
    assert widths == sorted(widths)
    told = PRIOR.after(FACTS, seen, 2e6)
    assert PRIOR.after(FACTS, seen, 2e6, stderr=0.2).log_std > told.log_std
    wider = replace(PRIOR, widening=(2.0, 1.0))
    assert wider.after(FACTS, seen, 2e6).log_std == pytest.approx(2 * told.log_std)
    assert wider.after(FACTS, seen, 2e6, under_way=True).log_std == pytest.approx(told.log_std)


def test_a_steeper_start_is_expected_to_end_lower():
    end = 2e6
    flat = [Observation(15e3, 5.0, decay=0.4), Observation(40e3, 4.7, decay=0.4)]
    steep = [replace(flat[0], loss=5.4), flat[1]]
    assert PRIOR.after(FACTS, steep, end).value < PRIOR.after(FACTS, flat, end).value < 4.7
    # the same evaluations at the constant rate mean a lower end than decayed ones
    constant = [replace(o, decay=0.0) for o in flat]
    exact = replace(PRIOR, noise_decayed=1e-4, noise_constant=1e-4)
    assert exact.after(FACTS, constant, end).value < exact.after(FACTS, flat, end).value


def test_a_short_decay_brings_a_part_of_what_a_long_one_brings():
    seen = [Observation(4e5 * 1.2**i, 4.0 * 0.98**i, decay=0.0) for i in range(5)]
    whole, half, none = (PRIOR.after(FACTS, seen, 1e6, decay).value for decay in (0.4, 0.1, 0.0))
    assert whole < half < none
    of_half, of_whole = (1 - math.exp(-math.sqrt(share * 1e6 / 1024 / 60)) for share in (0.1, 0.4))
    assert math.log(none / half) == pytest.approx(of_half / of_whole * math.log(none / whole), rel=0.01)


def test_the_prior_that_ships_falls_with_tokens_and_knows_less_of_what_is_far():
    prior = recorded()
    probes = [Observation(14e3, 5.1, decay=0.4), Observation(41e3, 4.6, decay=0.4)]
    told = [prior.after(FACTS, probes, tokens) for tokens in (41e3, 1e5, 3e5, 1e6, 3e6)]
    values = [t.value for t in told]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(4.6, rel=0.03)
    assert 1.0 < values[-1] < 4.2
    assert [t.log_std for t in told] == sorted(t.log_std for t in told)


def test_evaluations_that_are_neighbours_are_one_observation():
    evaluations = [(1000.0, 9.0), (100_000.0, 4.0), (101_000.0, 4.2), (400_000.0, 3.5)]
    first, second = binned(evaluations, since=2000.0, offset=0.1)
    assert first.loss == pytest.approx(math.sqrt(4.0 * 4.2) * math.exp(-0.1))
    assert first.tokens == pytest.approx(math.sqrt(100_000 * 101_000)) and not first.decay
    assert second.loss == pytest.approx(3.5 * math.exp(-0.1))


def test_facts_are_logarithms_of_what_is_usual():
    assert FACTS.ngram_loss(65536) == pytest.approx(3.9)
    assert FACTS.ngram_loss(16384) == pytest.approx((4.6 + 3.9) / 2)  # half way in the logarithm
    assert FACTS.ngram_loss(1) == 4.6
    # beyond what was counted the loss falls on by the same share with every factor of the tokens
    assert FACTS.ngram_loss(16 * 1048576) == pytest.approx(3.4 * 3.4 / 3.9)
    usual = replace(FACTS, parameters=100_000, bytes_per_token=2.5 * math.e)
    predictable = usual.ngram_loss(1e5) / math.log(512) / 0.65
    assert usual.vector() == pytest.approx([1.0, 0.0, 1.0, math.log(predictable), 0.0, 0.0])
    assert replace(usual, packed=2 * usual.ngram_loss(1e5)).vector()[-1] == pytest.approx(math.log(2))
    larger = replace(usual, parameters=100_000 * math.e, tokens_per_step=1024 * math.e)
    assert larger.vector() - usual.vector() == pytest.approx([0, 1, 0, 0, 1, 0])


def test_the_conditional_curve_is_that_of_the_joint_normal():
    """By conditioning the whole Gaussian on what was seen, with the design and the covariance written out."""
    seen = [Observation(2e4, 5.0, decay=0.4, stderr=0.05), Observation(6e4, 4.4, decay=0.0)]
    end = Observation(3e5, 1.0, decay=0.4)
    rows, values = [], []
    for o in (*seen, end):
        x = math.log(o.tokens / 1e5)
        steps = o.tokens / 1024
        ngram = math.log(FACTS.ngram_loss(o.tokens) / FACTS.ngram_loss(1e5))
        constant = math.exp(-math.sqrt(o.decay * steps / 60))
        rows.append([1.0, (math.exp(-0.2 * x) - 1) / 0.2, ngram, constant, constant / math.sqrt(steps / 100), 0.0])
        values.append(math.log(o.loss))
    design, spread = np.array(rows), PRIOR.spread
    assert PRIOR.design(FACTS, [*seen, end]) == pytest.approx(design)
    together = np.diag(spread**2)
    together[0, 1] = together[1, 0] = 0.3 * spread[0] * spread[1]
    covariance = design @ together @ design.T
    for i, a in enumerate((*seen, end)):
        for j, b in enumerate((*seen, end)):
            covariance[i, j] += 0.01**2 * math.log(min(a.tokens, b.tokens) / 4096)
    few = [1 + 400 * 1024 / o.tokens for o in (*seen, end)]  # decayed after so few steps, a loss says less
    covariance[0, 0] += 0.004**2 * few[0] + (0.05 / 5.0) ** 2
    covariance[1, 1] += 0.006**2
    covariance[2, 2] += 0.004**2 * few[2]
    mean = design @ PRIOR.mean @ FACTS.vector()
    gain = np.linalg.solve(covariance[:2, :2], covariance[:2, 2])
    value = mean[2] + gain @ (np.array(values[:2]) - mean[:2])
    std = math.sqrt(covariance[2, 2] - gain @ covariance[:2, 2])
    found = PRIOR.after(FACTS, seen, 3e5)
    assert math.log(found.value) == pytest.approx(value) and found.log_std == pytest.approx(std)
    unsure = PRIOR.after(FACTS, seen, 3e5, stderr=0.1)
    assert unsure.log_std == pytest.approx(math.hypot(std, 0.1 / found.value))


def test_text_seen_again_is_worth_less_in_every_part_of_the_curve():
    few = replace(FACTS, unique=50_000)
    once, again = Observation(50_000, 4.0, decay=0.4), Observation(500_000, 4.0, decay=0.4)
    x = math.log(worth(500_000, 50_000) / 1e5)
    assert PRIOR.design(few, [again])[0, 1] == pytest.approx((math.exp(-0.2 * x) - 1) / 0.2)
    assert PRIOR.design(few, [again])[0, 2] == PRIOR.design(few, [once])[0, 2]  # no n-gram is seen that was not before


def test_a_model_learns_the_less_from_more_text_the_smaller_it_is():
    prior = replace(PRIOR, form=CurveForm(slowing=0.2, saturation=10.0))
    large = replace(FACTS, parameters=10**12)
    seen = [Observation(tokens, 4.0, decay=0.4) for tokens in (1e4, 6e5, 1e9, 1e10)]
    falls = prior.design(FACTS, seen)[:, 1]
    assert prior.design(large, seen)[:, 1] == pytest.approx(PRIOR.design(large, seen)[:, 1], rel=1e-3)
    x = math.log(6e5 / 2 / 1e5)  # ten tokens a parameter: half of what text is worth is left
    assert falls[1] == pytest.approx((math.exp(-0.2 * x) - 1) / 0.2)
    assert falls[2] - falls[3] < 0.01 and np.all(np.diff(falls) < 0)


def test_the_loss_rises_as_text_is_seen_again_and_again_the_more_so_the_larger_the_model():
    few, form = replace(FACTS, unique=50_000), CurveForm(rise_power=0.5, rise_size=2.0, rise_decay=0.6)
    prior = replace(PRIOR, form=form)
    seen = [
        Observation(5e4, 4.0, 0.0),
        Observation(5e5, 4.0, 0.0),
        Observation(1e7, 4.0, 0.0),
        Observation(1e7, 4.0, 0.4),
    ]
    once, nine, many, decayed = prior.design(few, seen)[:, 5]
    assert once == 0 and nine == pytest.approx(math.sqrt(0.9) * (60 / 50) ** 2)
    assert many == pytest.approx(math.sqrt(19.9) * 1.2**2) and decayed == pytest.approx(1.6 * many, rel=1e-3)
    assert prior.design(replace(few, parameters=120_000), seen)[1, 5] == pytest.approx(4 * nine)
    # what text is worth is used up by then: the expected loss has its least on the way
    ends = [prior.after(few, [replace(seen[0], loss=3.9)], tokens, 0.2).value for tokens in (1e5, 1e6, 1e7, 1e8)]
    assert ends[1] < ends[0] and ends[3] > ends[2] > ends[1]


def test_a_run_that_rises_is_expected_to_rise_on():
    few = replace(FACTS, unique=50_000)
    trunk = [Observation(1e5 * 1.3**i, 4.0, 0.0) for i in range(15)]
    flat = recorded().after(few, trunk, 8e6, 0.2, under_way=True)
    rising = [replace(o, loss=4.0 + 0.03 * max(0, i - 5)) for i, o in enumerate(trunk)]
    assert recorded().after(few, rising, 8e6, 0.2, under_way=True).value > max(flat.value, rising[-1].loss * 0.98)


def test_how_uncertain_the_means_are_widens_forecasts_most_where_little_was_recorded():
    covariance = np.zeros((6, 6, 6, 6))
    covariance[1, 1, 1, 1] = 0.02**2  # by how much the fall depends on the size
    unsure = replace(PRIOR, mean_covariance=covariance.reshape(36, 36))
    usual, far = replace(FACTS, parameters=100_000), replace(FACTS, parameters=10_000_000)
    seen = [Observation(4e4, 4.6, decay=0.4)]
    assert unsure.after(usual, seen, 2e6) == PRIOR.after(usual, seen, 2e6)  # ln(100k / 100k) = 0
    assert unsure.after(far, seen, 2e6).log_std > 1.1 * PRIOR.after(far, seen, 2e6).log_std
    fact = math.log(100)
    added = unsure.covariance((far, seen)) - PRIOR.covariance((far, seen))
    assert added[0, 0] == pytest.approx((0.02 * fact * PRIOR.design(far, seen)[0, 1]) ** 2)


def test_beyond_what_was_recorded_nothing_is_said_of_more_tokens():
    prior = replace(PRIOR, further=((2.0, 1.1), (8.0, 1.4)), most_passes=50.0)
    few = replace(FACTS, unique=50_000)
    assert prior.further_widening(few, 1e5, 2e5) == 1.1 and prior.further_widening(few, 1e5, 2.1e5) == 1.4
    assert prior.further_widening(few, 1e5, 8.1e5) is None  # times the tokens that it had
    assert prior.further_widening(few, 2e6, 2.6e6) is None  # passes
    start, ended = replace(START, facts=few), Observation(1e5, 4.0, 0.2)
    most = recorded().further[-1][0]
    assert math.isnan(start.further([], ended, 1e5 * most).value)
    assert math.isfinite(start.further([], ended, 1e5).value)


def test_a_recorded_run_ends_where_its_shorter_end_said():
    """A quarter of the tokens, then all of them: no fit has read this run."""
    row = json.loads((RECORDED / "python-own-1M-1.json").read_text())
    facts = CurveFacts(
        parameters=row["parameters"],
        unique=row["unique"],
        bytes_per_token=row["bytes"] / row["unique"],
        vocab_size=row["vocabulary"],
        tokens_per_step=row["loop"]["tokens_per_step"],
        ngrams=[tuple(pair) for pair in row["ngrams"]],
        packed=row["packed"],
    )
    probes = [Observation(e["tokens"], e["loss"], 0.4) for e in row["ends"] if e["kind"] == "probe"]
    ended, later = (e for e in row["ends"] if e["kind"] == "end")
    trunk = [(tokens, loss) for tokens, loss, *_ in row["trunk"] if 0 < tokens <= ended["from"]]
    start = CurveStart(facts, probes, 0.0, 0.0, 62_000, 0.4)
    gain = start.further(trunk, Observation(ended["tokens"], ended["loss"], 0.4), later["tokens"] - ended["tokens"])
    assert gain.contains(1 - later["loss"] / ended["loss"]) and gain.low > 0.05


# --- the outlook of a run ---

START = CurveStart(
    FACTS, [Observation(15e3, 5.1, decay=0.4), Observation(40e3, 4.6, decay=0.4)], 0.0, 0.02, 20_480, 0.4
)


def evaluated(step: int) -> Eval:
    tokens = step * 1024
    return Eval(step=step, tokens=tokens, loss=4.9 * (tokens / 2e4) ** -0.1, stderr=0.02)


def followed(events: list[object], resumed_after: int | None = None) -> tuple[Outlook, list[LossForecast]]:
    told: list[LossForecast] = []
    log = Events(listeners=[lambda e: told.append(e) if isinstance(e, LossForecast) else None])
    outlook = Outlook(START, 2e6, 1024, log)
    for i, event in enumerate(events):
        if i == resumed_after:
            outlook, earlier = Outlook(START, 2e6, 1024, log), [*events[:i], *told]
            outlook.resume(sorted(earlier, key=lambda e: e.step))
        outlook(event)
    return outlook, told


def test_evaluations_of_a_sample_that_is_harder_are_read_as_those_of_the_text() -> None:
    """offset: ln of the loss on the run's own sample ÷ that on the larger one; the forecast is of the latter."""
    seen = [(e.tokens, e.loss) for e in map(evaluated, range(20, 400, 20))]
    harder = [(tokens, loss * math.exp(0.2)) for tokens, loss in seen]
    plain, shifted = START.loss_under_way(seen, 2e6), replace(START, offset=0.2).loss_under_way(harder, 2e6)
    assert shifted.ends == pytest.approx(plain.ends)
    assert replace(START, offset=0.2).loss_under_way(seen, 2e6).value < plain.value


def test_a_judged_text_that_is_harder_is_so_the_more_the_more_is_learned():
    harder = replace(START, shifts=[(1e4, 0.1), (1e6, 0.3)])
    assert [harder.shift(16 * counted) for counted in (1e3, 1e5, 1e7)] == pytest.approx([0.1, 0.2, 0.3])
    plain, shifted = START.loss(16e5), harder.loss(16e5)
    assert shifted.value == pytest.approx(plain.value * math.exp(0.2))
    assert shifted.log_std == pytest.approx(math.hypot(plain.log_std, 0.25 * 0.2))
    # of what a longer run learns, less shows there; more text and a larger model see as many tokens
    gains, there = START.gains(16e5), harder.gains(16e5)
    step = math.exp(harder.shift(32e5) - harder.shift(16e5))
    assert 1 - there["time"].value == pytest.approx((1 - gains["time"].value) * step)
    assert there["text"] == gains["text"] and there["model"] == gains["model"]
    assert gains["text"].value == 0  # this text is not seen again
    few = replace(START, facts=replace(FACTS, unique=100_000)).gains(16e5)
    assert 0.01 < few["text"].value < 0.2 and few["text"].low < few["text"].value < few["text"].high


def test_the_outlook_narrows_and_ends_with_the_decay():
    steps = list(range(20, 1600, 20))
    outlook, told = followed([*map(evaluated, steps), DecayStarted(step=1580, until=2000, why="settled")])
    assert len(told) > 10
    assert told[-1].end_tokens == 2000 * 1024 and told[0].end_tokens == 2_000_000
    spans = [math.log(t.high / t.low) for t in told]
    assert spans[-1] < spans[0]
    assert all(b.tokens >= 1.1 * a.tokens for a, b in zip(told[:-1], told[1:-1], strict=False))
    figures = outlook.figures()
    assert figures is not None and 0.8e6 < figures["tokens"] <= 1e6


def test_what_more_tokens_would_have_brought_is_a_share_of_the_loss_that_was_delivered():
    steps = list(range(20, 1600, 20))
    outlook, _ = followed([*map(evaluated, steps), DecayStarted(step=1580, until=2000, why="settled")])
    near, far = (outlook.further(3.02, more) for more in (2e5, 2e6))
    assert 0 < near.value < far.value and near.low < near.value < near.high < far.high
    assert far.high - far.low > near.high - near.low
    # a run that ended lower than its curve says has less to gain
    assert outlook.further(2.9, 2e6).value < far.value
    few, _ = followed([evaluated(20), DecayStarted(step=30, until=40, why="time")])
    assert few.further(4.4, 2e5).value > 0  # a short run has the prior to go by
    assert math.isnan(few.further(4.4, 2e6).value)  # no recorded run was followed so far from so little
    assert math.isnan(followed([*map(evaluated, steps)])[0].further(3.02, 2e6).value)  # nothing has decayed


def test_a_resumed_run_has_the_outlook_of_one_that_never_stopped():
    events = [*map(evaluated, range(20, 1600, 20)), DecayStarted(step=1580, until=2000, why="settled")]
    whole, told = followed(events)
    again, told_again = followed(events, resumed_after=40)
    assert [t.model_dump(exclude={"time"}) for t in told_again] == [t.model_dump(exclude={"time"}) for t in told]
    assert again.figures() == whole.figures()


def test_what_a_rollback_undid_is_forgotten():
    good = [evaluated(step) for step in range(20, 600, 20)]
    bad = [Eval(step=s, tokens=s * 1024, loss=9.0, stderr=0.02) for s in range(600, 700, 20)]
    back = Rollback(step=690, to_step=590, loss="9.0", grad_norm="1.0", batches=[])
    rest = [evaluated(step) for step in range(600, 1000, 20)]
    assert followed([*good, *bad, back, *rest])[1][-1].loss == pytest.approx(followed([*good, *rest])[1][-1].loss, 0.01)


def test_what_a_run_begins_with_is_kept_in_its_forecast():
    assert CurveStart.from_json([*map(list, START.to_json())]) == START
    for nothing in (None, [], [["facts", {}]], {"curve": 1}, 3):
        assert CurveStart.from_json(nothing) is None
