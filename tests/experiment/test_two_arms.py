"""The A/B of a finding: its order, its verdicts, what a Ctrl-C leaves, and what it says of a side that fails."""

import json
import math
import random

import pytest

from settle.base.errors import EngineError, ResourceError
from settle.base.event_log import Events
from settle.base.statistics import paired_test
from settle.experiment.run import prove
from settle.experiment.two_arms import GuardedArm, TwoArms, analyses

ITEMS = [f"item {i}" for i in range(8)]
OTHERS = [f"other {i}" for i in range(8)]


class Measured(GuardedArm):
    """A side whose measure is `level` and the noise of each item, and that notes what it is asked."""

    def __init__(self, name, level, asked, noise=0.05, guard=0.0, fails_at=None):
        self.name, self.level, self.asked = name, level, asked
        self.noise, self.worse, self.fails_at, self.opened = noise, guard, fails_at, 0

    def load(self):
        self.opened += 1

    def measure(self, item):
        if item == self.fails_at:
            raise EngineError("llama.cpp died", "")
        self.asked.append((self.name, item))
        return self.level + self.noise * random.Random(f"{self.name}{item}").gauss(0, 1)

    def guard(self, item):
        return self.worse + 0.01 * random.Random(f"{self.name}{item}").gauss(0, 1)


def trial_of(before, after, **settings):
    settings = {"measure": "loss", "unit": "nats per token", "least": 0.2, "items": ITEMS, "others": OTHERS} | settings
    return TwoArms(knob="a setting", before=before, after=after, **settings)


def pair(asked, low=1.0, **after):
    return Measured("before", 2.0, asked), Measured("after", low, asked, **after)


def test_a_clear_effect_is_proven_and_the_fix_is_tested_on_other_items(tmp_path):
    asked = []
    proof = prove(trial_of(*pair(asked)), tmp_path / "m.jsonl", Events())
    assert proof.state == "proven" and proof.verified
    assert {item for _, item in asked} == {*ITEMS, *OTHERS}
    # A B B A: each half of the items is measured on both sides before the next
    order = [name for name, item in asked if item in ITEMS]
    assert order == ["before"] * 4 + ["after"] * 8 + ["before"] * 4


def test_a_clear_effect_is_shown_by_six_items_and_no_more_are_measured(tmp_path):
    asked, many = [], {"items": [f"item {i}" for i in range(12)], "others": [f"other {i}" for i in range(20)]}
    proof = prove(trial_of(*pair(asked), **many), tmp_path / "m.jsonl", Events())
    assert proof.verified and (proof.effect.rows, proof.retest.rows) == (6, 6) and len(asked) == 24


def test_where_one_of_the_first_disagrees_more_are_asked(tmp_path):
    class Contradicted(Measured):
        def measure(self, item):
            return super().measure(item) + (1.2 if item == "item 2" else 0.0)

    asked, many = [], {"items": [f"item {i}" for i in range(12)], "others": [f"other {i}" for i in range(12)]}
    trial = trial_of(Measured("before", 2.0, asked), Contradicted("after", 1.0, asked), **many)
    proof = prove(trial, tmp_path / "m.jsonl", Events())
    assert proof.state == "proven" and (proof.effect.rows, proof.retest.rows) == (12, 6)
    order = [name for name, item in asked if item in many["items"]]
    assert order == (["before"] * 3 + ["after"] * 6 + ["before"] * 3) * 2, "each look is A B B A of its own"


@pytest.mark.parametrize("number", [6, 8, 9, 12, 17, 18, 24])
def test_all_looks_together_err_as_one_test_may(number):
    """By every course of coin tosses: of a change that does nothing, at most 2.5 % are shown as better."""
    courses, shown, done = {0: 1.0}, 0.0, 0
    for at, enough in analyses(number):
        after = {}
        for wins, chance in courses.items():
            for more in range(at - done + 1):
                test = paired_test([0.0] * at, [1.0] * (wins + more) + [-1.0] * (at - wins - more))
                share = chance * math.comb(at - done, more) / 2 ** (at - done)
                if test.difference.value > 0 and test.p_value <= enough:
                    shown += share
                else:
                    after[wins + more] = after.get(wins + more, 0.0) + share
        courses, done = after, at
    assert 0 < shown <= 0.025


def test_no_effect_is_ruled_out_and_nothing_is_tested_again(tmp_path):
    asked = []
    proof = prove(trial_of(*pair(asked, low=2.0)), tmp_path / "m.jsonl", Events())
    assert proof.state == "ruled out" and proof.retest is None and not proof.verified
    assert {item for _, item in asked} == {*ITEMS}


def test_an_effect_that_is_real_and_too_small_to_count_is_not_proven(tmp_path):
    before, after = Measured("before", 2.0, [], noise=0.001), Measured("after", 1.9, [], noise=0.001)
    assert prove(trial_of(before, after), tmp_path / "m.jsonl", Events()).state == "ruled out"


def test_noise_as_large_as_the_effect_leaves_it_likely(tmp_path):
    before, after = Measured("before", 2.0, [], noise=1.0), Measured("after", 1.6, [], noise=1.0)
    assert prove(trial_of(before, after), tmp_path / "m.jsonl", Events()).state == "likely"


def test_more_can_be_better(tmp_path):
    before, after = Measured("before", 1.0, []), Measured("after", 2.0, [])
    assert prove(trial_of(before, after, lower=False), tmp_path / "a.jsonl", Events()).state == "proven"
    assert prove(trial_of(before, after), tmp_path / "b.jsonl", Events()).state == "ruled out"


def test_times_are_compared_as_ratios_of_pairs_in_turns(tmp_path):
    asked = []
    before, after = Measured("before", 20.0, asked, noise=0.5), Measured("after", 10.0, asked, noise=0.5)
    proof = prove(trial_of(before, after, timed=True, least=0.1), tmp_path / "m.jsonl", Events())
    assert proof.state == "proven" and proof.effect.difference.value == pytest.approx(0.69, abs=0.1)
    assert [name for name, _ in asked][:6] == ["before", "after", "after", "before", "before", "after"]


def test_a_fix_that_makes_something_else_worse_is_not_verified(tmp_path):
    trial = trial_of(*pair([], guard=1.0), guards=ITEMS)
    proof = prove(trial, tmp_path / "m.jsonl", Events())
    assert proof.state == "proven" and proof.guards.verdict == "worse" and not proof.verified


def test_a_fix_that_helps_only_where_it_was_proven_is_not_verified(tmp_path):
    class OnlyItems(Measured):
        def measure(self, item):
            return super().measure(item) + (1.0 if item in OTHERS else 0.0)

    proof = prove(trial_of(Measured("before", 2.0, []), OnlyItems("after", 1.0, [])), tmp_path / "m.jsonl", Events())
    assert proof.state == "proven" and not proof.verified


def test_a_side_that_cannot_be_measured_leaves_it_likely_and_says_why(tmp_path):
    proof = prove(trial_of(*pair([], fails_at=ITEMS[5])), tmp_path / "m.jsonl", Events())
    assert proof.state == "likely" and proof.failed == {"after": "llama.cpp died"}


def test_what_was_measured_before_an_interruption_is_not_measured_again(tmp_path):
    class Interrupted(Measured):
        def measure(self, item):
            if len(self.asked) == 10:
                raise KeyboardInterrupt
            return super().measure(item)

    asked, record = [], tmp_path / "m.jsonl"
    with pytest.raises(KeyboardInterrupt):
        prove(trial_of(Measured("before", 2.0, asked), Interrupted("after", 1.0, asked)), record, Events())
    assert len(record.read_text().splitlines()) == 10
    with record.open("a") as file:
        file.write('{"part": "proof", "side": "aft')  # torn by a crash
    proof = prove(trial_of(*pair(asked)), record, Events())
    assert proof.state == "proven" and len(asked) == len({*asked}) == 32


@pytest.mark.parametrize(("told", "says"), [(100.0, True), (0.0, False)])
def test_a_time_that_was_told_wrongly_is_told_anew_before_the_rest(told, says, tmp_path):
    asked, heard = [], []
    events = Events()
    events.listeners.append(lambda event: heard.append((len(asked), event)))
    trial = trial_of(*pair(asked), seconds=told, timed=True, least=0.1)
    prove(trial, tmp_path / "m.jsonl", events)
    said = [(at, event.text) for at, event in heard if event.kind == "say"]
    assert [at for at, _ in said] == ([2] if says else []), "after the first pair, and once"
    assert heard[-1][1].seconds_left == 0


def test_a_full_disk_is_said_and_what_was_measured_is_kept(tmp_path):
    (tmp_path / "taken").write_text("in the way")
    with pytest.raises(ResourceError, match="cannot write"):
        prove(trial_of(*pair([])), tmp_path / "taken" / "m.jsonl", Events())


def test_a_proof_is_json(tmp_path):
    proof = prove(trial_of(*pair([])), tmp_path / "m.jsonl", Events())
    assert json.loads(json.dumps(proof.to_json()))["state"] == "proven"
