"""The statistics that verdicts and intervals rest on, held against scipy where it has them."""

import math
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
from scipy import stats

from settle.base import statistics
from settle.base.statistics import (
    VERDICT_P,
    Interval,
    PairedTest,
    add_two_interval,
    bootstrap_mean,
    bootstrap_ratio,
    in_order,
    paired_test,
    share_interval,
    sign_flip,
    sign_tail,
    student_cdf,
    student_quantile,
    unconditional_p,
    wilson,
)

FREEDOMS = (0.5, 1, 1.7, 2, 3, 4.4, 7, 10, 25.5, 100, 1e3, 1e5)


@pytest.mark.parametrize("freedom", FREEDOMS)
def test_student_is_scipys(freedom: float):
    for t in (-50, -8, -2.2, -1, -1e-3, 0, 1e-6, 0.3, 1, 1.96, 3, 12, 300):
        assert student_cdf(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), rel=1e-8), t
    for probability in (1e-4, 0.025, 0.1, 0.4, 0.5, 0.6, 0.9, 0.975, 0.999, 0.99999):
        expected = stats.t.ppf(probability, freedom)
        assert student_quantile(probability, freedom) == pytest.approx(expected, rel=1e-8, abs=1e-9), probability


@pytest.mark.parametrize("n", [1, 2, 5, 14, 100, 1000])
def test_wilson_is_scipys(n: int):
    for hits in {0, 1, n // 3, n}:
        measured = wilson([True] * hits + [False] * (n - hits))
        expected = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
        assert (measured.low, measured.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert measured.value == hits / n
    assert wilson([]) == Interval(0.0, 0.0, 1.0)
    published = wilson([True] * 15 + [False] * 133)  # Newcombe 1998, table I
    assert (round(published.low, 4), round(published.high, 4)) == (0.0624, 0.1605)


@pytest.mark.parametrize("n", [15, 40, 120])
def test_the_interval_of_a_share_holds_wherever_the_share_is(n: int):
    """By all outcomes: Wilson's misses one share in seven of those near the ends."""
    hits = range(n + 1)
    ours, theirs = ([f([True] * h + [False] * (n - h)) for h in hits] for f in (share_interval, wilson))
    shares = np.concatenate([np.linspace(0.002, 0.05, 25), np.linspace(0.05, 0.95, 61), np.linspace(0.95, 0.998, 25)])
    chances = stats.binom.pmf(np.arange(n + 1)[None], n, shares[:, None])
    held, held_by_wilson = (
        (chances * np.array([[i.contains(p) for i in intervals] for p in shares])).sum(1)
        for intervals in (ours, theirs)
    )
    assert held.min() >= 0.928 and held.mean() <= 0.98 and held_by_wilson.min() < 0.92
    assert all(a.low <= b.low and a.high >= b.high for a, b in zip(ours, theirs, strict=True))
    assert share_interval([]) == Interval(0.0, 0.0, 1.0)
    families = [i // 4 for i in range(n)]
    mixed = [i % 8 < 4 for i in range(n)]
    assert share_interval(mixed, families).low < share_interval(mixed).low - 0.02, "families that agree count once"


@pytest.mark.parametrize(("wins", "losses", "rows"), [(5, 0, 30), (12, 4, 40), (0, 0, 20), (20, 0, 20)])
def test_two_rows_are_added(wins: int, losses: int, rows: int):
    interval = add_two_interval(wins, losses, rows)
    n, middle = rows + 2, (wins - losses) / (rows + 2)
    half = stats.norm.ppf(0.975) * math.sqrt(((wins + losses + 2) / n - middle**2) / n)
    assert interval.ends == pytest.approx(((wins - losses) / rows, max(-1, middle - half), min(1, middle + half)))
    scores = [1.0] * wins + [0.0] * (rows - wins), [0.0] * wins + [1.0] * losses + [0.0] * (rows - wins - losses)
    assert paired_test(scores[1], scores[0]).difference == interval, "it is that of answers right or wrong"
    families = [i // 2 for i in range(rows)]
    assert rows == wins or paired_test(scores[1], scores[0], families).difference != interval


@pytest.mark.parametrize("n", [15, 24, 60])
def test_the_interval_of_a_difference_of_shares_holds_and_no_verdict_is_false(n: int):
    """By all outcomes, few and many differing rows, on one side or on both: nothing is drawn."""
    pairs = [(w, m) for w in range(n + 1) for m in range(n + 1 - w)]
    wins, losses = np.array(pairs).T
    intervals = [add_two_interval(w, m, n) for w, m in pairs]
    low, high = (np.array([getattr(i, end) for i in intervals]) for end in ("low", "high"))
    p_values = np.array([unconditional_p(int(w), int(m), n) for w, m in pairs])
    better = (low > 0) & (p_values <= VERDICT_P)
    for differ in (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0):
        for lean in (0.0, 0.5, 1.0):
            w, m = differ * (1 + lean) / 2, differ * (1 - lean) / 2
            chance = stats.multinomial.pmf(np.stack([wins, losses, n - wins - losses], 1), n, [w, m, 1 - w - m])
            assert chance[(low <= w - m) & (w - m <= high)].sum() >= 0.93
            assert lean or chance[better].sum() <= 0.025


def test_the_bootstrap_approaches_students_interval():
    values = np.random.default_rng(3).normal(2.0, 1.0, 60)
    measured = bootstrap_mean(values)
    expected = stats.t.interval(0.95, 59, values.mean(), stats.sem(values))
    assert (measured.low, measured.high) == pytest.approx(expected, abs=0.03)


def test_the_bootstrap_of_a_ratio_is_scipys():
    random = np.random.default_rng(5)
    counts = random.integers(20, 60, 400).astype(float)
    sums = 2 * counts + random.normal(0, 6, 400)
    measured = bootstrap_ratio(sums, counts)
    expected = stats.bootstrap(
        (sums, counts),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert (measured.low, measured.high) == pytest.approx((expected.low, expected.high), abs=0.003)


def test_one_row_has_no_interval():
    assert bootstrap_mean([0.5]) == Interval(0.5, -math.inf, math.inf)
    assert bootstrap_mean([0.5]).to_json() == {"value": 0.5, "low": None, "high": None}
    assert bootstrap_mean([]).value == 0.0


@pytest.mark.parametrize("rows", [6, 11])
def test_the_p_value_is_scipys_exact_permutation_test(rows: int):
    random = np.random.default_rng(rows)
    differences = random.normal(0.4, 1.0, rows)
    direction = "greater" if differences.sum() > 0 else "less"
    expected = stats.permutation_test(
        (differences, np.zeros(rows)),
        lambda a, b, axis: (a - b).mean(axis),
        permutation_type="samples",
        alternative=direction,
        n_resamples=np.inf,
        vectorized=True,
    ).pvalue
    assert paired_test([0.0] * rows, differences.tolist()).p_value == pytest.approx(2 * expected)


def test_of_many_rows_some_signs_are_drawn():
    """Student's test is about right of so many rows that are normal."""
    differences = np.random.default_rng(3).normal(0.2, 1.0, 40)
    expected = stats.ttest_1samp(differences, 0.0).pvalue
    assert 0.05 < expected < 0.9 and paired_test([0.0] * 40, differences.tolist()).p_value == pytest.approx(
        expected, abs=0.03
    )


def test_a_clear_gain_and_a_clear_loss():
    base, tuned = [0.0] * 40, [1.0] * 20 + [0.0] * 20
    gain, loss = paired_test(base, tuned), paired_test(tuned, base)
    assert gain.verdict == "better" and loss.verdict == "worse"
    assert (gain.wins, gain.losses, gain.rows) == (20, 0, 40)
    assert gain.difference.low == pytest.approx(-loss.difference.high, abs=0.03)
    assert 0.3 < gain.difference.low < 0.5 < gain.difference.high < 0.7
    assert 0 < gain.p_value == gain.adjusted_p < 0.001


def test_few_rows_prove_little():
    assert paired_test([0] * 5, [1] * 5).verdict == "too few rows to tell"
    assert paired_test([0] * 6, [1] * 6).verdict == "better"  # 2 of 64 ways
    alone = paired_test([0.3], [0.4])
    assert alone.verdict == "too few rows to tell" and alone.difference.low < -0.5 and alone.difference.high > 0.5


def test_rows_that_never_differ_are_not_proof_of_equality():
    same = paired_test([1.0] * 50, [1.0] * 50)
    assert same.verdict == "no different" and same.p_value == 1
    assert same.difference.high == -same.difference.low == pytest.approx(1.96 * math.sqrt(2) / 52, rel=0.01)
    lower = paired_test([3.0] * 50, [2.5] * 50, [i // 2 for i in range(50)]).difference  # 25 families, rule of three
    assert lower.value == -0.5 and lower.low == pytest.approx(-0.5 - 3 / 25 * 0.5, abs=0.01)
    assert lower.high == pytest.approx(-0.5 + 3 / 25 * 1.5, abs=0.02)


def test_same_data_same_figures():
    random = np.random.default_rng(1)
    base, tuned = random.random(300).tolist(), random.random(300).tolist()
    assert paired_test(base, tuned) == paired_test(base, tuned)


@pytest.mark.parametrize("rows", [12, 60])
def test_coverage_and_false_alarms(rows: int):
    """Of many comparisons with a true difference of 0.1, the interval misses it in about 5 %; of none, few alarms."""
    random = np.random.default_rng(0)
    missed = alarms = 0
    rounds = 400
    for _ in range(rounds):
        hard = random.random(rows)
        base, equal = random.random(rows) < hard, random.random(rows) < hard
        found = paired_test(base, base + random.normal(0.1, 0.4, rows), resamples=400)
        missed += not found.difference.contains(0.1)
        alarms += paired_test(base, equal, resamples=400).is_shown
    assert missed <= 0.09 * rounds and alarms <= 0.07 * rounds
    assert missed >= 0.01 * rounds


def test_a_share_of_families_is_as_sure_as_they_are_many():
    """20 families of 10 that are mostly right or wrong together: the interval holds the share in nearly 95 % of the
    samples, and that of 200 independent ones in far fewer."""
    random = np.random.default_rng(0)
    families = np.repeat(np.arange(20), 10).tolist()
    held = blindly = 0
    for _ in range(400):
        hits = (random.random(200) < np.repeat(random.beta(0.7, 0.3, 20), 10)).tolist()
        held += wilson(hits, families).contains(0.7)
        blindly += wilson(hits).contains(0.7)
    assert 0.91 * 400 <= held <= 0.985 * 400 and blindly < 0.75 * 400
    alone = wilson([True] * 30 + [False] * 10, list(range(40)))
    assert alone.value == 0.75 and alone.low == pytest.approx(wilson([True] * 30 + [False] * 10).low, abs=0.01)
    assert wilson([True] * 60, families[:60]).low == pytest.approx(6 / (6 + 2.571**2), abs=0.001)


def test_rows_of_one_family_are_no_independent_samples():
    """20 families of 10 rows whose differences are half the family's: by families the interval holds its promise, and
    taken for 200 rows of their own it would miss the truth in a third of the cases."""
    random = np.random.default_rng(0)
    families = np.repeat(np.arange(20), 10)
    missed, blindly, alarms, rounds = 0, 0, 0, 200
    for _ in range(rounds):
        differences = 0.7 * random.normal(size=20)[families] + 0.7 * random.normal(size=200)
        kept = paired_test(np.zeros(200), differences, families, resamples=400)
        assert (kept.rows, kept.families) == (200, 20)
        missed += not kept.difference.contains(0.0)
        alarms += kept.is_shown
        blindly += not paired_test(np.zeros(200), differences, resamples=400).difference.contains(0.0)
    assert missed <= 0.1 * rounds and alarms <= 0.1 * rounds and blindly >= 0.25 * rounds
    agreeing = paired_test(np.zeros(60), np.tile([1.0, 3.0], 30), np.repeat(np.arange(5), 12))
    assert agreeing.p_value == 2 / 32 and agreeing.verdict == "too few rows to tell"
    assert agreeing.difference.low < 0.5 and agreeing.difference.value == 2


def test_claims_of_one_report_are_corrected_together():
    def found(p: float) -> PairedTest:
        return PairedTest(0.0, 1.0, Interval(1.0, 0.1, 2.0), p, 50, 30, 10, 50, p)

    def adjusted(deciding: list[float], others: list[float]) -> list[float]:
        return [one.adjusted_p for one in in_order([found(p) for p in deciding], [found(p) for p in others])]

    assert adjusted([0.03], []) == [0.03]
    assert adjusted([0.04, 0.02], []) == pytest.approx([0.04, 0.04])  # Holm's own: twice the smaller, then once
    assert adjusted([0.03], [0.02, 0.3]) == pytest.approx([0.03, 0.04, 0.3])  # the first claim has the whole error
    assert adjusted([0.3], [0.003, 0.3]) == pytest.approx([0.3, 0.3, 0.3])  # not shown: nothing else is judged
    tests = in_order([found(0.06)], [found(0.001)])
    assert [one.verdict for one in tests] == ["too few rows to tell"] * 2 and not tests[1].is_shown


def test_a_verdict_waits_until_a_large_difference_is_ruled_out():
    wide, narrow = paired_test([0, 1] * 10, [1, 0] * 10), paired_test([1] * 30, [1] * 30)
    assert wide.possible > 0.2 and wide.verdict == "too few rows to tell" and not wide.is_shown
    assert narrow.possible < 0.2 and narrow.verdict == "no different"
    unbounded = paired_test([-3.0, 2.0] * 10, [2.0, -3.0] * 10)
    assert not unbounded.is_share and unbounded.verdict == "no different" and wide.is_share


@pytest.mark.parametrize(("wins", "losses", "rows"), [(5, 0, 20), (12, 4, 40), (30, 15, 150), (1, 8, 30)])
def test_the_unconditional_test_is_suissas_and_shusters(wins: int, losses: int, rows: int):
    """By all outcomes on a fine grid of how many rows differ; and never less sure than McNemar's exact test."""
    w, m = np.array([(w, m) for w in range(rows + 1) for m in range(rows + 1 - w) if w + m]).T
    extreme = (w - m) / np.sqrt(w + m) >= abs(wins - losses) / math.sqrt(wins + losses) - 1e-9
    w, m = w[extreme], m[extreme]
    most = 0.0
    for differ in np.linspace(0.002, 1, 500):
        outcomes = np.stack([w, m, rows - w - m], 1)
        most = max(most, stats.multinomial.pmf(outcomes, rows, [differ / 2, differ / 2, 1 - differ]).sum())
    found = unconditional_p(wins, losses, rows)
    assert found == pytest.approx(2 * most, rel=2e-3) and found == unconditional_p(losses, wins, rows)
    assert found <= stats.binomtest(wins, wins + losses).pvalue * 1.001
    scores = [0.0] * wins + [1.0] * losses + [1.0] * (rows - wins - losses)
    assert paired_test(scores, [1.0] * wins + [0.0] * losses + [1.0] * (rows - wins - losses)).p_value == found
    assert unconditional_p(3, 3, 10) == 1 and unconditional_p(600, 500, 2000) == pytest.approx(
        stats.binomtest(600, 1100).pvalue
    )


def test_reports_of_several_claims_are_rarely_wrong_anywhere():
    """Of reports in which nothing is true, with one score that decides and three others: one in twenty, and no more."""
    random = np.random.default_rng(3)
    wrong, rounds = 0, 400
    for _ in range(rounds):
        tests = [paired_test(np.zeros(40), random.normal(size=40), resamples=400) for _ in range(4)]
        wrong += any(one.is_shown for one in in_order(tests[:1], tests[1:]))
    assert 0.01 * rounds < wrong <= 0.075 * rounds


def test_a_log_normal_interval_holds_four_of_five():
    estimate = Interval.log_normal(100.0, 0.1)
    assert estimate.low * estimate.high == pytest.approx(100.0**2)
    assert math.log(estimate.high / 100.0) == pytest.approx(0.12816, rel=1e-3)
    assert estimate.log_std == pytest.approx(0.1)
    assert estimate.is_bounded and not Interval(1.0, 0.0).is_bounded and not Interval(1.0, high=2.0).is_bounded
    assert estimate.at_most(95).high == 95 and estimate.shifted(3).low == pytest.approx(estimate.low + 3)


@pytest.mark.parametrize("interval", [Interval(1.0, 0.5, 2.0, 0.8), Interval(1.0)])
def test_an_interval_comes_back_from_json(interval: Interval):
    assert Interval.from_json(interval.to_json(), interval.level) == interval


# --- by their formulas ---


class Counted(np.random.Generator):
    """Notes how many rows are drawn."""

    def __init__(self, seed: int) -> None:
        super().__init__(np.random.PCG64(seed))
        self.rows: list[int] = []

    def integers(self, low, high=None, size=None, **rest):
        self.rows.append(size[0])
        return super().integers(low, high, size, **rest)


def test_resamples_are_drawn_in_parts_and_are_as_many_as_asked_for(monkeypatch: pytest.MonkeyPatch):
    from settle.base import statistics

    monkeypatch.setattr(statistics, "MOST_RESAMPLED", 400 * 30)
    random = Counted(0)
    in_parts = bootstrap_ratio(np.arange(30.0), np.ones(30), random, 1000)
    assert random.rows == [400, 400, 200]
    monkeypatch.undo()
    assert in_parts == bootstrap_ratio(np.arange(30.0), np.ones(30), np.random.default_rng(np.random.PCG64(0)), 1000)
    monkeypatch.setattr(statistics, "MOST_RESAMPLED", 400 * 30)
    random = Counted(0)
    sign_flip(np.arange(1.0, 31.0), random, 1000)
    assert random.rows == [400, 400, 200]


def test_the_bootstrap_s_tails_are_those_of_student_with_the_variance_of_n():
    """Hesterberg 2015, section 5.3: the tail α/2 becomes Φ(-√(n/(n-1)) t)."""
    values = np.random.default_rng(0).normal(size=8)
    drawn = values[np.random.default_rng(3).integers(0, 8, (4000, 8))].mean(1)
    tail = stats.norm.cdf(-math.sqrt(8 / 7) * stats.t.ppf(0.975, 7))
    measured = bootstrap_mean(values, np.random.default_rng(3), 4000)
    assert (measured.low, measured.high) == pytest.approx(np.quantile(drawn, [tail, 1 - tail]))


def test_families_that_agree_count_as_the_rule_of_three_says():
    """Of n families that all differ by the mean, a share of 1 - 0.05^(1/n) may say the opposite."""
    for n, mean in ((20, 0.5), (6, 2.0), (9, -0.25)):
        unseen, most = 1 - 0.05 ** (1 / n), max(1.0, abs(mean))
        found = paired_test([0.0] * 2 * n, [mean] * 2 * n, [i // 2 for i in range(2 * n)]).difference
        assert found.ends == pytest.approx((mean, mean - unseen * (most + mean), mean + unseen * (most - mean)))


def test_the_interval_of_a_difference_is_students_corrected_for_skewness():
    """Hall's transformation (1992), inverted; families of unequal size count as fewer."""
    random = np.random.default_rng(7)
    family = np.repeat(np.arange(12), random.integers(1, 6, 12))
    differences = random.exponential(size=len(family))
    found = paired_test(np.zeros(len(family)), differences, family)
    sums, counts = np.bincount(family, differences), np.bincount(family)
    n, mean = 12, differences.mean()
    rest = sums - mean * counts
    std = math.sqrt((rest**2).sum() / (n - 1))
    skewness = (rest**3).sum() / std**3 * math.sqrt(n) / ((n - 1) * (n - 2))
    t = stats.t.ppf(0.975, counts.sum() ** 2 / (counts**2).sum() - 1)

    def end(quantile: float) -> float:
        bent = 3 / skewness * (math.cbrt(1 + skewness * (quantile - skewness / 6)) - 1)
        return mean - bent * std * math.sqrt(n) / counts.sum()

    resampled = bootstrap_ratio(sums, counts, np.random.default_rng(0))
    assert found.difference.value == pytest.approx(mean)
    assert found.difference.low == pytest.approx(min(resampled.low, end(t)))
    assert found.difference.high == pytest.approx(max(resampled.high, end(-t)))
    even = paired_test(np.zeros(12), [2.0, -2.0] * 6).difference  # no skewness: Student's own
    half = 2 * stats.t.ppf(0.975, 11) * math.sqrt(12 / 11) / math.sqrt(12)
    resampled = bootstrap_ratio([2.0, -2.0] * 6, [1.0] * 12, np.random.default_rng(0))
    assert even.high == pytest.approx(max(half, resampled.high)) and even.low == pytest.approx(
        -max(half, -resampled.low)
    )


def test_one_large_family_leaves_one_degree_of_freedom():
    """However unequal the families are, Student's t is never of fewer."""
    sums, counts = np.array([40.0, 1.0, -1.0]), np.array([100, 1, 1])
    family = np.repeat([0, 1, 2], counts)
    found = paired_test(np.zeros(102), (sums / counts)[family], family)
    assert found.difference.high - found.difference.low < 1e3 and found.verdict == "too few rows to tell"
    rest = sums - sums.sum() / 102 * counts
    assert found.difference.high > sums.sum() / 102 + math.sqrt((rest**2).sum() / 2) * math.sqrt(3) / 102


def test_shares_of_families_vary_as_much_as_their_design_effect_says():
    """Korn and Graubard 1998, with the variance of a ratio over families (Cochran 1977, section 6.4)."""
    hits, families = [True] * 6 + [False] * 6, [0, 0, 0, 0, 1, 2, 1, 1, 2, 2, 3, 3]
    excess = np.bincount(families, np.array(hits) - 0.5)
    effective = 12**2 * 0.25 * 3 / 4 / (excess**2).sum()
    assert effective < 12
    z = stats.t.ppf(0.975, 3)
    middle = (0.5 + z * z / (2 * effective)) / (1 + z * z / effective)
    half = z / (1 + z * z / effective) * math.sqrt(0.25 / effective + z * z / (4 * effective**2))
    assert wilson(hits, families).ends == pytest.approx((0.5, middle - half, middle + half))


def test_an_interval_holds_its_ends():
    interval = Interval(1.0, 0.5, 2.0)
    assert [interval.contains(v) for v in (0.5, 2.0, 0.49, 2.01)] == [True, True, False, False]
    assert interval.shifted(1.0).ends == (2.0, 1.5, 3.0) and interval.at_most(0.7).ends == (0.7, 0.5, 0.7)


def test_importing_it_loads_no_numpy():
    script = "import sys, settle.base.statistics; print(sorted({'numpy', 'torch', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("low", "high", "p", "verdict"),
    [
        (0.01, 0.2, 0.001, "better"),
        (-0.2, -0.01, 0.001, "worse"),
        (-0.01, 0.2, 0.001, "no different"),
        (-0.2, 0.01, 0.001, "no different"),
        (0.01, 0.2, 0.1, "too few rows to tell"),
        (0.01, 0.2, VERDICT_P, "better"),
        (0.01, 0.2, 1.01 * VERDICT_P, "too few rows to tell"),
    ],
)
def test_a_verdict_needs_the_interval_and_the_corrected_p_value(low, high, p, verdict):
    found = PairedTest(0.5, 0.6, Interval((low + high) / 2, low, high), 1e-9, 40, 9, 3, 40, p)
    assert found.verdict == verdict


def test_no_p_value_is_zero():
    """The data as it is is one assignment of signs: of thirty rows that agree at least that one is as extreme."""
    after = [0.5 + 0.01 * n for n in range(30)]
    found = paired_test([0.0] * 30, after, resamples=200)
    assert found.p_value == pytest.approx(2 / 201)


# --- chances of small experiments, by counting ---


@pytest.mark.parametrize("tosses", range(6))
def test_a_coin_s_tail_is_counted(tosses: int) -> None:
    for heads in range(-2, tosses + 3):
        wanted = sum(math.comb(tosses, k) for k in range(tosses + 1) if k >= heads) / 2**tosses
        assert sign_tail(tosses, heads) == wanted


@pytest.mark.parametrize(
    "sums", [(3.0, -1.0, 2.0), (1.0, 1.0, 1.0, -1.0), (0.5,), (4.0, 0.0, -4.0), (1.0, 2.0, 4.0, 8.0)]
)
def test_signs_are_enumerated(sums: tuple[float, ...]) -> None:
    observed = abs(sum(sums))
    totals = [abs(sum(s * x for s, x in zip(signs, sums, strict=True))) for signs in product((1, -1), repeat=len(sums))]
    wanted = sum(total >= observed - 1e-9 for total in totals) / len(totals)
    found = sign_flip(np.array(sums), np.random.default_rng(0), 100)
    assert found == pytest.approx(min(1.0, wanted if observed else 1.0))


def test_drawn_signs_come_near_and_are_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = np.array([1.0, 0.9, 1.1, 0.7, 1.3, -0.4, 0.8, 0.6])
    exact = sign_flip(sums, np.random.default_rng(0), 100)
    monkeypatch.setattr(statistics, "MOST_ENUMERATED", 3)
    assert sign_flip(sums, np.random.default_rng(0), 40_000) == pytest.approx(exact, rel=0.15)
    all_up = np.arange(1.0, 31.0)
    assert sign_flip(all_up, np.random.default_rng(0), 99) == 2 / 100  # the data itself is one of a hundred
