"""Several candidates on the same rows: who is shown to be worse is asked no more, and what the rest shows at the end.

All pairs are compared. A quarter of the error is spent on bets that may be looked at after every row, the rest on the
paired test at the end, corrected for its pairs by Shaffer's method.

Whoever stops a test of fixed size as soon as it shows something claims too much. Wealth that is won by bets at fair
odds under the null hypothesis may be looked at any time: the chance that it ever grows by a factor of 1/α is α at most
(Ville 1939; Waudby-Smith and Ramdas 2024).

Legend: n rows in the order in which they were asked, F families of rows that belong together, K candidates, L stakes.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from settle.base.files import JsonObject
from settle.base.statistics import LEVEL, Interval, PairedTest, paired_test
from settle.evaluate.compare.sample_size import HARDLY, chance_to_decide, more_rows, next_step, smallest_visible

STAKES = 32  # shares of the wealth that are bet, evenly spread from 0 to 1; each has as much of it at the start
STEPS = 10  # halvings of the range in which an end of an interval is looked for
ERROR = 0.02  # chance of any false "better" among all pairs
ERROR_OF_WAYS = 0.05  # the same, where few are compared and the cheapest is taken in doubt
ALONE = 0.05  # one-sided error of a pair by itself, from which on a lead is no chance as likely as not
EARLY_SHARE = 0.25  # of the error, for candidates that drop out before all rows are asked
FEWEST_TO_STOP = 8  # families asked before the rest may be left out for showing nothing


@dataclass(frozen=True)
class ComparedPair:
    """Two candidates by number.

    Attributes:
        more: how many rows more would show a difference as large as this one, None where hardly any number would.
    """

    first: int
    second: int
    difference: Interval  # mean score of `first` minus that of `second`, on the `rows` that both answered
    rows: int
    p_value: float  # corrected for all pairs; of an early one the inverse of the evidence, times the pairs
    is_shown: bool  # it is no chance
    early: bool = False  # shown before all rows were asked; the interval then holds whenever one stops
    more: int | None = None
    p_alone: float = 1.0  # of the test at the end by itself; 1 where none was made

    @property
    def better(self) -> int | None:
        """The candidate that is shown to be better, if any."""
        if not self.is_shown:
            return None
        return self.first if self.difference.value > 0 else self.second


@dataclass(frozen=True)
class Outcome:
    """The end of a race."""

    names: Sequence[str]
    means: Sequence[float]  # of each candidate, on the rows that it answered
    asked: Sequence[int]  # how many those were
    pairs: Sequence[ComparedPair]
    left: Sequence[int]  # candidates that none is shown to be better than, by number
    rows: int  # that there were
    why: str = ""  # it ended before all were asked, or ""
    error: float = ERROR  # chance of any false claim among all pairs

    @property
    def saved(self) -> float:
        """The share of all answers that nobody had to write."""
        return 1 - sum(self.asked) / (self.rows * len(self.names))

    @property
    def leader(self) -> int:
        """The candidate left with the highest mean; the first where several have it."""
        return max(self.left, key=lambda k: self.means[k])

    def pair(self, first: int, second: int) -> ComparedPair:
        """Return the pair of two candidates, in the order in which it is asked for."""
        found = next(p for p in self.pairs if {p.first, p.second} == {first, second})
        if found.first == first:
            return found
        d = found.difference
        turned = Interval(-d.value, -d.high, -d.low, d.level)
        return replace(found, first=first, second=second, difference=turned)

    def leads(self, over: int, by: float) -> list[int]:
        """Return the candidates left, later than `over`, that scored more by over `by`, and hardly by chance."""
        later = [k for k in self.left if k > over and self.means[k] - self.means[over] > by]
        return [k for k in later if self.pair(k, over).p_alone <= 2 * ALONE]


class Race:
    """Candidates answer rows in turns; see the module.

    Attributes:
        names: of the candidates.
        families: (n,), the same number for rows that belong together.
        is_share: scores are from 0 to 1; others have no bounds to bet within, so nobody drops out early.
        error: chance of any false claim.
        may_stop: all rows are asked of everybody where it is not set, and the whole error is spent at the end.
    """

    def __init__(
        self,
        names: Sequence[str],
        families: Sequence[int],
        is_share: bool = True,
        error: float = ERROR,
        seed: int = 0,
        may_stop: bool = True,
    ) -> None:
        self.names = list(names)
        self._seed, self._may_stop, self._error = seed, may_stop, error
        self._pairs = list(itertools.combinations(range(len(self.names)), 2))
        early = error * EARLY_SHARE if is_share and may_stop else 0.0
        self._final_error = error - early
        self._enough = 2 * len(self._pairs) / early if early and self._pairs else math.inf
        self.order = _shuffled(families, seed)
        self._families = [families[row] for row in self.order]
        self._largest = max(np.bincount(np.unique(self._families, return_inverse=True)[1]), default=1)
        self._scores: list[list[float]] = [[] for _ in self.names]
        self._early: dict[tuple[int, int], ComparedPair] = {}
        self._why = ""

    @property
    def left(self) -> list[int]:
        """Candidates that none is shown to be better than."""
        worse = {p.second if p.difference.value > 0 else p.first for p in self._early.values()}
        return [k for k in range(len(self.names)) if k not in worse]

    @property
    def smallest_visible(self) -> float | None:
        """The smallest difference that all rows would show in four cases of five, as far as rows are independent."""
        return smallest_visible(len(set(self._families)), self._final_error / max(1, len(self._pairs)))

    def next_rows(self, number: int) -> list[int]:
        """Return the next rows that everybody left answers: `number`, and the rest of the last family."""
        begin = self._done
        end = min(begin + number, len(self.order))
        while 0 < end < len(self.order) and self._families[end] == self._families[end - 1]:
            end += 1
        return [] if self._why else self.order[begin:end]

    def record(self, scores: Mapping[int, Sequence[float]]) -> list[int]:
        """Take the scores of the next rows, by candidate, and return who is shown to be worse by now."""
        before = self.left
        for candidate in before:
            self._scores[candidate] += scores[candidate]
        for first, second in itertools.combinations(before, 2):
            self._look(first, second)
        after = self.left
        if len(after) < 2 and len(self.names) > 1:
            self._why = f"{self.names[after[0]]} is shown to be better than all others"
        elif self._may_stop and self._done < len(self.order) and self._is_futile(after):
            self._why = "the other rows would hardly have changed the verdict"
        return [k for k in before if k not in after]

    def outcome(self) -> Outcome:
        """Return what the rows that were asked show."""
        left = self.left
        final = self._final(left)
        worse = {pair.second if pair.better == pair.first else pair.first for pair in final if pair.is_shown}
        pairs = [*self._early.values(), *final]
        seen = {(p.first, p.second) for p in pairs}
        # of a pair of which one dropped out because of a third, what both answered shows nothing
        pairs += [self._anytime(*pair, p_value=1.0, is_shown=False) for pair in self._pairs if pair not in seen]
        return Outcome(
            names=self.names,
            means=[float(np.mean(scores)) if scores else math.nan for scores in self._scores],
            asked=[len(scores) for scores in self._scores],
            pairs=sorted(pairs, key=lambda p: (p.first, p.second)),
            left=[k for k in left if k not in worse],
            rows=len(self.order),
            why=self._why if self._done < len(self.order) else "",
            error=self._error,
        )

    @property
    def _done(self) -> int:
        return max(map(len, self._scores), default=0)

    def _differences(self, first: int, second: int) -> np.ndarray:
        """Return the differences of the rows that both answered."""
        both = min(len(self._scores[first]), len(self._scores[second]))
        pairs = zip(self._scores[first][:both], self._scores[second][:both], strict=True)
        return np.array([ours - theirs for ours, theirs in pairs], float)

    def _sums(self, differences: np.ndarray) -> np.ndarray:
        """Return sums by family (F,), as shares of the largest that a family can have."""
        _, begin = np.unique(self._families[: len(differences)], return_index=True)
        sums: np.ndarray = np.add.reduceat(differences, np.sort(begin)) if len(differences) else differences
        shares: np.ndarray = sums / self._largest
        return shares

    def _look(self, first: int, second: int) -> None:
        differences = self._differences(first, second)
        sums = self._sums(differences)
        won = max(evidence(sums), evidence(-sums)) if self._enough < math.inf else 0.0
        if won >= self._enough:
            self._early[first, second] = self._anytime(first, second, 2 * len(self._pairs) / won, True)

    def _anytime(self, first: int, second: int, p_value: float, is_shown: bool) -> ComparedPair:
        differences = self._differences(first, second)
        sums = self._sums(differences)
        scale = self._largest * len(sums) / max(1, len(differences))
        interval = anytime_interval(sums)
        ends = [max(-1.0, min(1.0, scale * end)) for end in interval.ends]
        return ComparedPair(
            first, second, Interval(*ends), len(differences), min(1.0, p_value), is_shown, early=is_shown
        )

    def _final(self, left: Sequence[int]) -> list[ComparedPair]:
        """Return the pairs of those that are left, by the paired test, corrected together."""
        pairs = list(itertools.combinations(left, 2))
        if not pairs or not self._done:
            return []
        families = self._families[: self._done]
        tests = [paired_test(self._scores[b], self._scores[a], families, self._seed) for a, b in pairs]
        judged = []
        for pair, test in zip(pairs, shaffer(tests, len(left)), strict=True):
            excludes_zero = test.difference.low > 0 or test.difference.high < 0
            is_shown = excludes_zero and test.adjusted_p <= self._final_error
            more = None if is_shown else more_rows(self._differences(*pair), self._final_error / len(pairs))
            shown = ComparedPair(*pair, test.difference, test.rows, test.adjusted_p, is_shown)
            judged.append(replace(shown, more=more, p_alone=test.p_value))
        return judged

    def _is_futile(self, left: Sequence[int]) -> bool:
        """Return whether no pair has a chance to be decided by the rows that are left."""
        pairs = list(itertools.combinations(left, 2))
        sums = {pair: self._sums(self._differences(*pair)) for pair in pairs}
        if min(map(len, sums.values()), default=0) < FEWEST_TO_STOP:
            return False
        rest = len(set(self._families[self._done :]))
        error = self._final_error / len(pairs)
        return all(chance_to_decide(sums[pair], rest, error, self._seed) < HARDLY for pair in pairs)


def _shuffled(families: Sequence[int], seed: int) -> list[int]:
    """Return rows in an order that does not depend on theirs, those of a family one after the other."""
    members: dict[int, list[int]] = {}
    for row, family in enumerate(families):
        members.setdefault(family, []).append(row)
    groups = list(members.values())
    return [row for i in np.random.default_rng(seed).permutation(len(groups)) for row in groups[i]]


# --- evidence that may be looked at after every row ---


def evidence(differences: "Sequence[float] | np.ndarray", mean: float = 0.0) -> float:
    """Return the most that a unit of wealth ever grew to by betting that differences (n,) are above `mean` on average.

    Each is from -1 to 1. At 1/α it is shown with an error of α, however often it was looked at before.
    """
    values = np.asarray(differences, float)
    if not len(values):
        return 1.0
    # at worst a difference is -1 - mean below: a stake of 1 then loses everything and no more
    stakes = (np.arange(STAKES) + 0.5) / STAKES
    gains = np.log1p(stakes[:, None] * ((values - mean) / (1 + mean))[None, :])  # (L, n)
    wealth = np.logaddexp.reduce(np.cumsum(gains, axis=1), axis=0) - math.log(STAKES)
    return float(np.exp(min(700.0, max(0.0, wealth.max()))))


def anytime_interval(differences: "Sequence[float] | np.ndarray", level: float = LEVEL) -> Interval:
    """Return the mean of differences (n,), each from -1 to 1, with its interval.

    No bets at error 1 - `level` exclude what lies in it. It holds whenever the asking was stopped, for whatever reason.
    """
    values = np.asarray(differences, float)
    if not len(values):
        return Interval(0.0, -1.0, 1.0, level)
    enough = 2 / (1 - level)
    return Interval(float(values.mean()), _lower_end(values, enough), -_lower_end(-values, enough), level)


def _lower_end(values: np.ndarray, enough: float) -> float:
    """Return the largest mean that is shown to be exceeded, by halving: evidence falls as the mean rises."""
    low, high = -1.0, float(values.mean())
    if evidence(values, low + 2**-STEPS) < enough:
        return low
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if evidence(values, middle) >= enough else (low, middle)
    return low


# --- all pairs, corrected together ---


def shaffer(tests: Sequence[PairedTest], candidates: int) -> list[PairedTest]:
    """Correct the p-values of the tests of all pairs together (Shaffer 1986).

    Where two candidates differ, a third differs from one of them: fewer claims can be false at once than Holm counts.
    """
    possible = _numbers_of_equal_pairs(candidates)
    adjusted, largest = list(tests), 0.0
    for rank, i in enumerate(sorted(range(len(tests)), key=lambda i: tests[i].p_value)):
        false_at_once = max(number for number in possible if number <= len(tests) - rank)
        largest = max(largest, min(1.0, tests[i].p_value * max(1, false_at_once)))
        adjusted[i] = replace(tests[i], adjusted_p=largest)
    return adjusted


def _numbers_of_equal_pairs(candidates: int) -> set[int]:
    """Return the numbers of pairs that can be equal, when candidates fall into groups that are alike."""
    if candidates < 2:
        return {0}
    sizes = range(1, candidates + 1)
    return {size * (size - 1) // 2 + rest for size in sizes for rest in _numbers_of_equal_pairs(candidates - size)}


def value_text(value: float, is_share: bool) -> str:
    """Return a score: 85 %, or 0.850 where it is no share."""
    if math.isnan(value):
        return "–"
    return f"{100 * value:.0f} %" if is_share else f"{value:.3f}"


def difference_text(value: float, is_share: bool) -> str:
    """Return a difference of scores: 5 points, or 0.050 where they are no shares."""
    return f"{round(100 * value)} points" if is_share else f"{value:.3f}"


def range_text(difference: Interval, is_share: bool) -> str:
    """Return a difference with its interval: 5 points (95 %: 1 to 9)."""
    low, high = (difference_text(end, is_share).removesuffix(" points") for end in difference.ends[1:])
    return f"{difference_text(difference.value, is_share)} (95 %: {low} to {high})"


def may_be_ahead(outcome: Outcome, chosen: int, others: Sequence[int], is_share: bool, noun: str) -> str:
    """Say by how much one of the others may still be ahead of the chosen one, and the cheapest step to settle it.

    noun: of the rows.
    """
    nearest = max(others, key=lambda k: outcome.pair(k, chosen).difference.high)
    pair = outcome.pair(nearest, chosen)
    step = next_step(pair.difference, pair.rows, is_share, noun, outcome.error / len(outcome.pairs))
    ahead = difference_text(max(0.0, pair.difference.high), is_share)
    return f"{outcome.names[nearest]} may be up to {ahead} ahead, and {step}"


def pairs_json(outcome: Outcome, noun: str) -> list[JsonObject]:
    """Return all pairs for result.json. noun: of the rows, in the names of their numbers."""
    return [
        {
            "first": outcome.names[p.first],
            "second": outcome.names[p.second],
            "difference": p.difference.to_json(),
            "p": p.p_value,
            "shown": p.is_shown,
            "better": None if p.better is None else outcome.names[p.better],
            "early": p.early,
            noun: p.rows,
            f"more_{noun}": p.more,
        }
        for p in outcome.pairs
    ]
