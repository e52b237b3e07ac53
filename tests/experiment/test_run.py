"""Arms asked in turns, with arms that cost nothing: what is asked when, what is kept, and what is told of the time."""

import math
from types import SimpleNamespace

import pytest

from settle.base.errors import EngineError, ResourceError
from settle.base.event_log import Events
from settle.base.events import Say
from settle.base.files import read_json
from settle.evaluate.compare.cases import asking
from settle.experiment import arm as arm_module
from settle.experiment import run as run_module
from settle.experiment.arm import SLOTS, Arm, ModelArm, Reply, Rewritten
from settle.experiment.race import Race
from settle.experiment.run import EXPECTED_SPREAD, LEAST_SPREAD, ArmPace, run_race, seconds_left
from settle.jobs import short_run
from settle.library.reference import ModelRef
from settle.machine.memory import Memory
from settle.model.source import Source
from tests.fake_time import set_time

CASES = [asking(f"question {number}", number) for number in range(24)]


class Counting(Arm):
    """Answers with the question's own words; `log` gets what it was asked. fails_at: the number of the answer that
    fails, with `error`. sleeps: seconds of an answer, on a clock of its own."""

    now = 0.0

    def __init__(self, name, log, fails_at=None, error=None, seconds=None, sleeps=0.0, num_bytes=0):
        self.name = self.key = name
        self.log, self.fails_at, self.seconds, self.num_bytes = log, fails_at, seconds, num_bytes
        self.error, self.made, self.sleeps, self.is_loaded = error or EngineError("it died", "try"), 0, sleeps, False

    def load(self):
        if not self.is_loaded:
            self.log.append((self.name, "loaded"))
        self.is_loaded = True

    def measure(self, case):
        if self.made == self.fails_at:
            raise self.error
        self.made += 1
        self.log.append((self.name, case.question))
        Counting.now += self.sleeps
        return Reply(f"{self.name} says {case.question}", read=3, written=4, seconds=self.sleeps)

    def close(self):
        if self.is_loaded:
            self.log.append((self.name, "closed"))
        self.is_loaded = False


def run(arms, score=lambda reply, case: 0.5, cases=CASES, seen=None):
    def race(names):
        return Race(names, list(range(len(cases))), may_stop=False)

    events = Events(listeners=[seen.append] if seen is not None else [])
    return run_race(arms, cases, race, score, events)


def test_arms_take_turns_forwards_and_backwards(home):
    log = []
    finished = run([Counting("a", log), Counting("b", log), Counting("c", log)])
    names = [name for name, what in log if what.startswith("question")]
    turns = [name for i, name in enumerate(names) if not i or names[i - 1] != name]
    assert turns == ["a", "b", "c", "b", "a", "b", "c", "b", "a", "b", "c"] and len(names) == 72
    by_arm = {name: [what for n, what in log if n == name and what.startswith("question")] for name in "abc"}
    assert by_arm["a"] == by_arm["b"] == by_arm["c"], "each is asked the same rows in the same order"
    assert finished.made == 72 and finished.outcome.asked == [24, 24, 24]
    assert finished.replies[1][5].text == "b says question 5" and finished.replies[1][5].written == 4
    assert [what for _, what in log].count("closed") == 3


def test_what_was_answered_is_not_asked_again(home):
    log = []
    run([Counting("a", log), Counting("b", log)])
    log.clear()
    again = run([Counting("a", log), Counting("b", log)], lambda reply, case: float("a says" in reply.text))
    assert log == [] and again.made == 0 and again.forecast.value == 0
    assert again.outcome.means == [1.0, 0.0], "scores are those of the answers that were kept"


def test_a_stop_loses_nothing_that_was_answered(home):
    log = []
    with pytest.raises(KeyboardInterrupt):
        run([Counting("a", log), Counting("b", log, fails_at=5, error=KeyboardInterrupt())])
    assert log[-1] == ("b", "closed") or log[-2] == ("b", "closed"), "nothing stays loaded"
    asked = [entry for entry in log if entry[1].startswith("question")]
    run([Counting("a", log), Counting("b", log)])
    every = [entry for entry in log if entry[1].startswith("question")]
    assert len(asked) == 13 and len(every) == len(set(every)) == 48


def test_an_arm_that_fails_is_reported_and_the_others_go_on_as_without_it(home):
    seen, log = [], []
    score = lambda reply, case: float(reply.text.startswith("c"))  # noqa: E731
    finished = run([Counting("a", log), Counting("b", log, fails_at=9), Counting("c", log)], score, seen=seen)
    assert set(finished.failures) == {"b"} and finished.failures["b"].what == "it died"
    assert [e.text for e in seen if e.kind == "warn"] == ["b failed, and the others go on: it died"]
    alone = run([Counting("a", []), Counting("c", [])], score)
    assert finished.outcome == alone.outcome and finished.outcome.names == ["a", "c"]
    asked = [entry for entry in log if entry[1].startswith("question")]
    assert len(asked) == len(set(asked)) == 24 + 9 + 24


def test_where_all_fail_nothing_is_said(home):
    finished = run([Counting("a", [], fails_at=0), Counting("b", [], fails_at=3)])
    assert finished.outcome is None and set(finished.failures) == {"a", "b"} and not finished.replies


def test_a_question_that_an_arm_cannot_be_asked_is_its_failure(home):
    def refuse(case):
        raise ResourceError("no index is there", "make one")

    log = []
    base = Counting("a", log)
    finished = run([base, Rewritten(base, "with documents", refuse)])
    assert list(finished.failures) == ["with documents"] and finished.outcome.names == ["a"]


def test_an_arm_that_is_asked_otherwise_shares_what_is_loaded_and_known(home):
    log = []
    base = Counting("a", log)
    shout = Rewritten(base, "loud", lambda case: asking(f"LOUD: {case.question}", case.number))
    same = Rewritten(base, "same", lambda case: case)
    finished = run([base, shout, same])
    assert log.count(("a", "loaded")) == 1 and log.count(("a", "question 3")) == 1
    assert finished.replies[1][3].text == "a says LOUD: question 3" and finished.replies[2] == finished.replies[0]
    assert finished.made == 48


def test_one_at_a_time_where_memory_holds_no_more(home, monkeypatch):
    monkeypatch.setattr(run_module, "memory", lambda: Memory(total=100, available=100, limit=None))
    log = []
    run([Counting("a", log, num_bytes=60), Counting("b", log, num_bytes=60)])
    loaded = [entry for entry in log if not entry[1].startswith("question")]
    at_once = 0
    for _, what in loaded:
        at_once += 1 if what == "loaded" else -1
        assert at_once <= 1
    assert [name for name, what in loaded if what == "loaded"] == ["a", "b", "a", "b"], "A B, B A, A B: twice each"


@pytest.mark.parametrize(("available", "at_once"), [(4 * 640, 1), (4 * 3 * 640, 3), (10**9, SLOTS), (0, 1)])
def test_as_many_at_once_as_a_quarter_of_the_free_memory_holds(available, at_once, monkeypatch, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"x" * 100)
    ref = ModelRef("m", "model", Source(tmp_path / "m.gguf", "gguf", "m"))
    monkeypatch.setattr(arm_module, "memory", lambda: Memory(total=10**9, available=available, limit=None))
    monkeypatch.setattr(arm_module, "read_facts", lambda path: SimpleNamespace(bytes_per_token=10))
    arm = ModelArm(ref, 64, 5)
    assert arm.at_once == at_once and arm.num_bytes == 100 + at_once * 640
    assert arm.key == ModelArm(ref, 99, 5).key != ModelArm(ref, 64, 6).key
    arm.close()


def test_the_time_is_told_before_and_as_it_goes(home, monkeypatch):
    seen = []
    set_time(monkeypatch, run_module, monotonic=lambda: Counting.now)
    arms = [Counting("a", [], seconds=0.004, sleeps=0.004), Counting("b", [], seconds=0.002, sleeps=0.002)]
    finished = run(arms, seen=seen)
    assert finished.forecast.value == pytest.approx(24 * 0.006) and finished.seconds == pytest.approx(24 * 0.006)
    assert next(e.text for e in seen if e.kind == "say").startswith("answering takes 0.1 s at most (80 %:")
    left = [e.seconds_left for e in seen if e.kind == "progress" and e.seconds_left is not None]
    assert left[0] > left[len(left) // 2] > left[-1] == 0

    seen.clear()
    finished = run([Counting("c", [])], seen=seen)
    assert finished.forecast is not None, "of an arm of which nothing is known it is told after its first answers"


def test_expected_and_measured_are_weighed_by_what_each_is_worth():
    pace = ArmPace(expected=1.0)
    before = seconds_left([pace], [100])
    assert before.value == pytest.approx(100) and before.high / before.value == pytest.approx(1.566, rel=0.01)
    for _ in range(10):
        pace.record(4, 8.0)
    after = seconds_left([pace], [10])
    assert after.value == pytest.approx(20, rel=0.05) and after.contains(20)
    assert after.high / after.value < before.high / before.value
    assert seconds_left([ArmPace(), ArmPace()], [3, 3]) is None and seconds_left([ArmPace()], [0]).value == 0
    both = seconds_left([pace, ArmPace()], [0, 10])
    assert both.value == pytest.approx(20, rel=0.05) and both.high / both.value > 2, "as the other one, and who knows"


def test_a_full_disk_ends_the_trial_and_no_arm(home, monkeypatch):
    (home / "trials").write_text("in the way")
    with pytest.raises(ResourceError, match="cannot write to"):
        run([Counting("a", [])])


def test_a_line_that_a_crash_tore_is_asked_again(home):
    run([Counting("a", [])])
    (file,) = (home / "trials").iterdir()
    file.write_text(file.read_text()[:-40] + "\n[]\n")
    log = []
    assert run([Counting("a", log)]).made == 1


def test_answers_faster_than_a_second_count():
    pace = ArmPace()
    pace.record(0, 5.0)
    pace.record(4, 0.0)
    assert pace.estimate is None
    pace.record(4, 0.5)
    assert seconds_left([pace], [8]).value == pytest.approx(1.0)


def test_a_short_run_writes_its_plan_and_then_its_events(tmp_path):
    begun = []
    c = SimpleNamespace(
        spending=SimpleNamespace(start=lambda device, seconds: begun.append(device)),
        plan=SimpleNamespace(device="cpu", to_json=lambda: {"steps": 3}),
        corpus=SimpleNamespace(fingerprint="f"),
        run=SimpleNamespace(path=tmp_path, events=tmp_path / "events.jsonl"),
        record=None,
        events=Events(),
    )
    short_run._begun(c)
    c.events.emit(Say(text="a step"))
    c.events.close()
    assert read_json(tmp_path / "plan.json") == c.record == {"steps": 3, "corpus": "f"} and begun == ["cpu"]
    assert "a step" in c.run.events.read_text()


def test_what_was_measured_outweighs_what_was_expected_by_its_precision() -> None:
    assert ArmPace(2.0).estimate == pytest.approx((math.log(2.0), EXPECTED_SPREAD))
    pace = ArmPace(2.0)
    pace.record(4, 1.0)  # 0.25 s an answer
    both = 2 * EXPECTED_SPREAD**-2
    assert pace.estimate == pytest.approx(((math.log(2.0) + math.log(0.25)) / 2, both**-0.5))
    alone = ArmPace()
    for _ in range(3):
        alone.record(1, 0.5)
    assert alone.estimate == pytest.approx((math.log(0.5), LEAST_SPREAD))
    mixed = ArmPace()
    mixed.record(1, 1.0)
    mixed.record(3, 12.0)  # of all answers together: 13 s for 4
    spread = abs(math.log(4.0)) / math.sqrt(2)  # of two logarithms
    assert mixed.estimate == pytest.approx((math.log(13 / 4), max(LEAST_SPREAD, spread / math.sqrt(2))))
