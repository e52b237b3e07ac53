"""A lab: what is kept, what a stop or a failure leaves behind, and what is locked."""

import json
import math
import signal
from types import SimpleNamespace

import pytest

from settle.base.errors import ResourceError, RunError, UsageError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady
from settle.base.run import Run
from settle.cli import main
from settle.experiment.arm import digest
from settle.experiment.recipes import ERROR, error_of
from settle.jobs import lab as lab_module
from settle.jobs.lab import LabLedger, PlannedRecipe, RecipeArm, changed_recipe, planned, try_change
from settle.jobs.settings import LabSettings
from settle.jobs.short_run import Measurement

STD = 0.002  # of a pair


class World:
    """Runs that take no time: the loss follows from the recipe, and its noise from recipe and seed."""

    def __init__(self):
        self.runs, self.fails = [], {}  # what was run; error by the number of the run, from 0

    def measure(self, arm, seed):
        error = self.fails.pop(len(self.runs), None)
        if error is not None:
            raise error
        self.runs.append((arm.name, arm.side, seed))
        noise = int(digest([arm.recipe, arm.is_shaken, seed]), 16) / 16**24 - 0.5  # uniform
        settings = arm.recipe.get("optimizer", {})
        gain = settings.get("lr", 0.0)  # in this world a learning rate is what it gains
        failed = "diverged: it did" if settings.get("momentum") == 0.5 else ""
        common = int(digest(seed), 16) / 16**24  # what both runs of a pair share
        loss = math.inf if failed else 2 * math.exp(common - gain + noise * STD * math.sqrt(6))
        return Measurement(loss, 10, 5.0, failed)

    def planned(self, recipe, folder):
        known = {key: value for key, value in recipe.items() if key not in ("seed", "threads", "dtype", "device")}
        plan = SimpleNamespace(device="cpu", dtype="float32", loop=SimpleNamespace(threads=1), num_parameters=1000)
        return PlannedRecipe(plan, "corpus", digest(known))


@pytest.fixture
def world(monkeypatch):
    found = World()
    monkeypatch.setattr(RecipeArm, "measure", lambda arm, seed: found.measure(arm, seed))
    monkeypatch.setattr(lab_module, "planned", found.planned)
    return found


@pytest.fixture
def base(home, tmp_path):
    (tmp_path / "notes.txt").write_text("text\n")
    recipe = tmp_path / "base.toml"
    recipe.write_text(f'inputs = ["{tmp_path / "notes.txt"}"]\nsteps = 10\n')
    return recipe


def tried(base, *change, **settings):
    """Exit code and result of a command in the lab."""
    seen = []
    code = try_change([str(base), *change], LabSettings(**settings), Events(listeners=[seen.append]))
    return code, next(event.result for event in reversed(seen) if isinstance(event, ResultReady))


def test_a_gain_is_kept_and_the_next_change_is_compared_with_it(world, base, home):
    code, result = tried(base, "optimizer.lr=0.02")
    assert (code, result["verdict"], result["number"]) == (0, "kept", 1)
    assert result["gain"]["low"] > 0 and result["odds"] >= result["odds_needed"] == pytest.approx(1 / error_of(0))
    assert "lr = 0.02" in (home / "labs/base/best.toml").read_text()
    code, result = tried(base, "optimizer.lr=0.01")
    assert (code, result["verdict"]) == (3, "discarded"), "it is worse than what was kept"
    assert tried(base, "optimizer.lr=0.02")[0] == 3, "what was kept is the recipe now"
    assert tried(base, "optimizer.lr=0.04", "steps=20")[0] == 0
    recipe = tried(base)[1]["recipe"]
    assert recipe["optimizer"]["lr"] == 0.04 and recipe["steps"] == 20


def test_both_runs_of_a_pair_have_one_seed_and_no_seed_serves_two_changes(world, base):
    tried(base, "optimizer.lr=0.02")
    tried(base, "steps=11")
    pairs = [world.runs[place : place + 2] for place in range(0, len(world.runs), 2)]
    seeds = [{seed for _, _, seed in pair} for pair in pairs]
    assert all(len(seed) == 1 for seed in seeds) and len(set.union(*seeds)) == len(seeds)
    assert [pair[0][0] for pair in pairs[:2]] == ["the recipe", "the recipe, hardly changed"], "they take turns"
    assert {side for _, side, _ in world.runs} == {"selection"}


def test_what_was_tried_is_not_run_again_and_what_is_open_continues(world, base):
    code, result = tried(base, "optimizer.lr=0.0035", pairs=3, least=0.001)
    assert (code, result["verdict"], result["pairs"]) == (4, "undecided", 3)
    before = len(world.runs)
    assert tried(base, "optimizer.lr=0.0035", pairs=3, least=0.001)[0] == 4 and len(world.runs) == before
    code, result = tried(base, "optimizer.lr=0.0035", pairs=40, least=0.001)
    assert code == 0 and len(world.runs) == before + 2 * (result["pairs"] - 3)
    assert result["number"] == 1, "it goes on with its own share of the error"


def test_a_budget_ends_a_change(world, base):
    code, result = tried(base, "optimizer.lr=0.0035", least=0.001, budget="25s")
    assert (code, result["pairs"]) == (4, 2), "a pair takes ten seconds"
    assert "a budget of 25s" in result["why"]


@pytest.mark.parametrize("change", ["seed=7", "name=other", "steps=10"])
def test_what_changes_no_run_is_discarded_without_one(world, base, change):
    code, result = tried(base, change)
    assert (code, result["verdict"], world.runs) == (3, "discarded", [])
    assert tried(base)[1]["changes"] == [], "it spends nothing"


def test_a_whole_recipe_is_a_change(world, base, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text(base.read_text() + "[optimizer]\nlr = 0.02\n")
    assert tried(base, str(other))[0] == 0


def test_a_change_that_fails_is_discarded_and_a_recipe_that_fails_is_an_error(world, base):
    code, result = tried(base, "optimizer.momentum=0.5")
    assert code == 3 and "diverged" in result["why"]
    bad = base.with_name("bad.toml")
    bad.write_text(base.read_text() + "[optimizer]\nmomentum = 0.5\n")
    with pytest.raises(RunError, match="the recipe itself fails: diverged"):
        tried(bad, "optimizer.lr=0.02")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ResourceError("the disk is full", "make room")])
@pytest.mark.parametrize("at", [0, 7])
def test_after_a_stop_or_a_full_disk_the_same_command_continues(world, base, error, at):
    world.fails[at] = error
    with pytest.raises(type(error)):
        tried(base, "optimizer.lr=0.02")
    assert len(world.runs) == at
    assert tried(base, "optimizer.lr=0.02")[1]["number"] == 1
    assert len(set(world.runs)) == len(world.runs), "nothing was run twice"


def test_the_locked_text_is_read_only_when_it_is_opened_and_every_time_counts(world, base):
    with pytest.raises(UsageError, match="nothing that the locked text could judge"):
        tried(base, open=True)
    tried(base, "optimizer.lr=0.02")
    assert all(side == "selection" for _, side, _ in world.runs)
    before = len(world.runs)
    code, result = tried(base, open=True)
    assert code == 0 and result["openings"] == 1 and result["gain"]["low"] > 0
    assert {side for _, side, _ in world.runs[before:]} == {"held_out"} and len(world.runs) == before + 12
    again = base.with_name("again.toml")
    again.write_text(base.read_text())
    tried(again, "optimizer.lr=0.02")
    assert tried(again, open=True)[1]["openings"] == 2, "another lab of the same text does not begin at zero"
    assert tried(base)[1]["openings"] == 2


@pytest.mark.parametrize("damage", ["edit", "drop", "swap"])
def test_a_ledger_that_was_changed_is_refused(world, base, home, damage):
    for lr in (0.02, 0.01):
        tried(base, f"optimizer.lr={lr}")
    path = home / "labs/base/ledger.jsonl"
    lines = path.read_text().splitlines()
    changed = {
        "edit": [lines[0], lines[1].replace('"kept"', '"undecided"'), *lines[2:]],
        "drop": [lines[0], *lines[2:]],
        "swap": [lines[1], lines[0], *lines[2:]],
    }[damage]
    path.write_text("\n".join(changed) + "\n")
    with pytest.raises(RunError, match="was changed: line"):
        tried(base)
    path.write_text("\n".join(lines) + '\n{"torn": ')
    assert len(LabLedger(path).entries) == 4, "a line that a crash cut off is passed over"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("optimizer.lr", "is not valid TOML|there is no recipe|is no change"),
        ("optimizer.rl=0.1", "no setting 'optimizer.rl'"),
        ("data.clean=false", "changes the text"),
        ('inputs=["stdlib"]', "changes the text"),
        ("time=soon", "soon"),
    ],
)
def test_what_is_no_change_is_refused_and_spends_nothing(world, base, change, says):
    with pytest.raises(UsageError, match=says):
        tried(base, change)
    assert world.runs == [] and tried(base)[1]["changes"] == []


def test_the_recipe_of_a_lab_stays_as_it_was(world, base):
    tried(base, "optimizer.lr=0.02")
    base.write_text(base.read_text().replace("10", "20"))
    with pytest.raises(UsageError, match="is not the recipe that its lab began with"):
        tried(base, "optimizer.lr=0.03")


def test_the_command_has_the_exit_code_and_shows_what_was_tried(world, base, capsys):
    assert main(["runs", "compare", str(base), "optimizer.lr=0.02", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["verdict"] == "kept"
    assert main(["runs", "compare", str(base), "optimizer.lr=0.01"]) == 3
    capsys.readouterr()
    assert main(["runs", "compare", str(base)]) == 0
    out = "".join(capsys.readouterr())
    assert "optimizer.lr=0.02" in out and "kept" in out and "never read" in out
    assert main(["runs", "compare", str(base), "--open", "--pairs", "3"]) == 0
    assert main(["runs", "compare", str(base.with_name("none.toml")), "a=1"]) == 2


def test_a_change_of_an_optimizer_and_its_setting(base):
    first = {"inputs": [str(base)], "threads": 1, "dtype": "float32"}
    made = changed_recipe({**first, "steps": 10}, first, ["optimizer=adamw", "optimizer.lr=0.002", "size=2M"])
    assert made["optimizer"] == {"name": "adamw", "lr": 0.002} and made["size"] == "2M" and made["steps"] == 10


def test_many_changes_without_an_effect_spend_at_most_the_error_of_a_session(world, base):
    verdicts = [tried(base, f"optimizer.eps={1e-10 * (1 + n)}")[1]["verdict"] for n in range(1, 20)]
    assert "kept" not in verdicts
    assert sum(error_of(n) for n in range(len(verdicts))) < ERROR


# --- real runs ---


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "numbers.txt"
    path.write_text("\n\n".join(f"The square of {n} is {n * n}, and its cube is {n**3}." for n in range(700)))
    return path


def recipe_of(text, **settings):
    return {
        "inputs": [str(text)],
        "size": "10k",
        "steps": 6,
        "threads": 1,
        "dtype": "float32",
        "device": "cpu",
        **settings,
    }


def test_a_run_of_a_lab_measures_one_side_and_resumes(home, text, tmp_path, monkeypatch):
    arm = RecipeArm("the recipe", recipe_of(text), tmp_path / "a")
    whole = arm.measure(3)
    assert whole.steps == 6 and 0 < whole.loss < 20 and not whole.failed
    assert '"whole": true' not in Run(tmp_path / "a" / arm.run_key(3)).events.read_text(), "nothing was judged"
    shaken = RecipeArm("shaken", recipe_of(text), tmp_path / "a", is_shaken=True).measure(3)
    assert 0 < abs(math.log(whole.loss / shaken.loss)) < 0.01
    locked = RecipeArm("locked", recipe_of(text), tmp_path / "a", "held_out").measure(3)
    assert locked.loss != whole.loss

    def stop(event):
        if getattr(event, "step", 0) >= 3:
            signal.raise_signal(signal.SIGTERM)

    again = RecipeArm("the recipe", recipe_of(text), tmp_path / "b", progress=stop)
    monkeypatch.setattr(again, "_shown", stop)
    with pytest.raises(KeyboardInterrupt):
        again.measure(3)
    monkeypatch.undo()
    assert again.measure(3).loss == whole.loss, "it ends where it would have ended"


def test_recipes_of_the_same_runs_have_one_identity(home, text, tmp_path):
    first = planned(recipe_of(text), tmp_path)
    same = planned(recipe_of(text, seed=9, optimizer={"name": "muon", "lr": 0.02}), tmp_path)
    other = planned(recipe_of(text, optimizer={"name": "muon", "lr": 0.01}), tmp_path)
    assert first.identity == same.identity != other.identity


def test_a_lab_really_trains(home, text, tmp_path):
    recipe = tmp_path / "real.toml"
    recipe.write_text(f'inputs = ["{text}"]\nsize = "10k"\nsteps = 6\nthreads = 1\ndtype = "float32"\n')
    code, result = tried(recipe, "optimizer.lr=0.0001", pairs=3)
    assert code == 3 and result["gain"]["value"] < 0
    seen = []
    try_change([str(recipe)], LabSettings(), Events(listeners=[seen.append]))
    (shown,) = (event for event in seen if isinstance(event, Listing))
    assert [row[:3] for row in shown.rows] == [[1, "optimizer.lr=0.0001", "discarded"]]
    assert not (home / "labs/real/runs").exists(), "what was measured needs no run any more"
