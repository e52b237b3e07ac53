"""One recipe with several seeds: what is run, what is continued, and what the spread says."""

import numpy as np
import pytest
from scipy import stats

from settle.base.errors import RunError, UsageError
from settle.base.event_log import Events
from settle.base.files import write_atomic, write_json
from settle.base.run import Run
from settle.base.settings import recipe_text
from settle.cli import main
from settle.experiment.recipes import FREEDOM_OF_POWER, POWER, VERDICT_ERROR, Spread, compare
from settle.jobs import seeds as seeds_module
from settle.jobs.job import INTERRUPTED
from settle.jobs.seeds import compare_recipes, repeat, report
from settle.jobs.settings import TrainSettings


def test_two_recipes_are_compared_by_welch_s_test():
    ours, theirs = [3.71, 3.72, 3.70, 3.73], [3.69, 3.66, 3.70]
    found, wanted = compare(Spread.of(ours), Spread.of(theirs)), stats.ttest_ind(theirs, ours, equal_var=False)
    assert found.p_value == pytest.approx(wanted.pvalue, rel=1e-6)
    interval = wanted.confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == pytest.approx((interval.low, interval.high), rel=1e-6)
    mean = Spread.of(ours).mean
    assert (mean.low, mean.high) == pytest.approx(stats.t.interval(0.95, 3, np.mean(ours), stats.sem(ours)))


def test_what_is_visible_is_the_error_times_both_quantiles():
    """Of three seeds a recipe, with fewer degrees of freedom than seeds minus two."""
    freedom = FREEDOM_OF_POWER * (6 - 2)
    both = stats.t.ppf(1 - VERDICT_ERROR / 2, freedom) + stats.t.ppf(POWER, freedom)
    spread = Spread.of([1.0, 2.0, 3.0])
    assert spread.smallest_visible == pytest.approx(both * np.sqrt(2 / 3), rel=1e-6)
    assert compare(spread, spread).visible == pytest.approx(both * np.sqrt(2 / 3), rel=1e-6)


def test_noise_alone_is_seldom_called_a_difference_and_what_is_visible_is_seen():
    random = np.random.default_rng(5)
    draws = random.normal(size=(400, 2, 3))
    noise = [compare(Spread.of(a), Spread.of(b)) for a, b in draws]
    assert np.mean([d.is_shown for d in noise]) <= 0.02
    assert np.mean([d.difference.contains(0) for d in noise]) >= 0.94
    for seeds in (3, 5):
        visible = Spread((0.0,) * seeds, None, 1.0).smallest_visible
        draws = random.normal(size=(300, 2, seeds))
        seen = [compare(Spread.of(a), Spread.of(b + visible)).is_shown for a, b in draws]
        assert 0.74 <= np.mean(seen) <= 0.93


def test_runs_without_any_spread():
    same = compare(Spread.of([1.0, 1.0]), Spread.of([1.0, 1.0]))
    other = compare(Spread.of([1.0, 1.0]), Spread.of([2.0, 2.0]))
    assert (same.p_value, other.p_value) == (1.0, 0.0)


@pytest.fixture
def job(home, tmp_path, monkeypatch):
    """A job that needs no time: `runs` gets the settings of each run, `loss` gives its loss."""
    (tmp_path / "notes.txt").write_text("text\n")
    calls = []

    class Done:
        exit_code = 0

    def start(job, settings, events):
        calls.append(settings)
        run = Run.create(job.name, settings.name)
        write_atomic(run.path / "recipe.toml", recipe_text(settings.to_recipe()))
        write_json(run.path / "plan.json", {"corpus": "c1"})
        if start.stops_at == settings.seed:
            done = Done()
            done.exit_code = INTERRUPTED
            return done
        finish(run, settings.seed)
        return Done()

    def finish(run, seed):
        write_json(run.path / "result.json", {"verdict": "settled", "best": {"loss": 3.7 + 0.01 * (seed % 3)}})

    def resume(name, events):
        calls.append(name)
        finish(Run.find(name), int(name[-1]))
        return 0

    start.stops_at = None
    monkeypatch.setattr(seeds_module, "start", start)
    monkeypatch.setattr(seeds_module, "resume", resume)
    return start, calls, str(tmp_path / "notes.txt")


def test_each_seed_is_a_run_and_what_is_finished_is_not_run_again(job):
    _, calls, notes = job
    settings, seen = TrainSettings(inputs=[notes], seeds=3, seed=4), []
    events = Events(listeners=[seen.append])
    assert repeat("train", settings, events) == 0
    assert [(c.name, c.seed, c.seeds) for c in calls] == [(f"notes-seed{s}", s, 1) for s in (4, 5, 6)]
    result = seen[-1].result
    assert result["seeds"] == [4, 5, 6]
    assert result["figures"]["held-out loss"]["std"] == pytest.approx(np.std([3.71, 3.72, 3.7], ddof=1))
    assert repeat("train", settings, events) == 0 and len(calls) == 3
    repeat("train", settings.model_copy(update={"seeds": 4}), events)
    assert [c.name for c in calls[3:]] == ["notes-seed7"], "a further seed is added to those there are"
    with pytest.raises(UsageError, match="notes-seed4 was made by another recipe"):
        repeat("train", settings.model_copy(update={"steps": 9}), events)


def test_a_stop_ends_them_and_the_same_command_continues(job):
    start, calls, notes = job
    start.stops_at = 1
    settings = TrainSettings(inputs=[notes], seeds=3)
    assert repeat("train", settings, Events()) == INTERRUPTED and len(calls) == 2
    start.stops_at = None
    assert repeat("train", settings, Events()) == 0
    assert calls[2] == "notes-seed1" and calls[3].seed == 2 and len(calls) == 4


def test_two_recipes_are_compared_only_on_the_same_data(job, capsys):
    _, _, notes = job
    for name in ("a", "b"):
        repeat("train", TrainSettings(inputs=[notes], seeds=3, name=name), Events())
    capsys.readouterr()
    assert main(["runs", "compare", "a", "b"]) == 0
    assert "no different beside the noise of their seeds" in "".join(capsys.readouterr())
    for result in (Run.find(f"b-seed{s}").path / "result.json" for s in range(3)):
        write_json(result, {"verdict": "settled", "best": {"loss": 3.5}})
    seen = []
    compare_recipes(["a", "b"], Events(listeners=[seen.append]))
    assert any("that of b is lower than that of a by 0.2" in getattr(e, "text", "") for e in seen)
    write_json(Run.find("b-seed1").path / "plan.json", {"corpus": "other"})
    with pytest.raises(UsageError, match="judged on different data"):
        compare_recipes(["a", "b"], Events())
    with pytest.raises(RunError, match="0 finished runs of nobody"):
        report("nobody", "train", Events())
    for wrong in (["a"], ["a", "a"]):
        with pytest.raises(UsageError):
            compare_recipes(wrong, Events())


def test_standard_input_cannot_be_read_twice(job):
    with pytest.raises(UsageError, match="once for every seed"):
        repeat("train", TrainSettings(inputs=["-"], seeds=2), Events())


@pytest.mark.parametrize(("apart", "says"), [(0.5, "higher"), (-0.5, "lower")])
def test_a_difference_says_which_way_it_goes(apart, says):
    difference = compare(Spread.of([1.0, 1.001, 0.999]), Spread.of([1.0 + apart, 1.001 + apart, 0.999 + apart]))
    said = seeds_module._sentence("loss", "a", "b", difference)
    assert said.startswith(f"loss: that of b is {says} than that of a by 0.5")
