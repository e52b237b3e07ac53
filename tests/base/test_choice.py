"""A setting that is a part and the part's settings, from every side that gives one."""

import os
import subprocess
import sys
import textwrap

import pytest

import settle
from settle.base.choice import Choice
from settle.base.errors import UsageError
from settle.base.settings import FormerName, resolve
from settle.cli import main
from settle.commands import Command
from settle.commands.make.train import Train
from settle.commands.make.tune import Tune
from settle.model.adapters import Adapter
from settle.model.adapters.dora import DoRA


@pytest.fixture
def parsed(monkeypatch):
    """The settings that a command line comes to, without the command being run."""

    def parse(*argv):
        ran = []
        command = Command.part(argv[0])
        monkeypatch.setattr(command, "run", lambda self, events: ran.append(self) or 0)
        assert main(list(argv)) == 0
        return ran[0]

    return parse


@pytest.mark.parametrize(
    ("argv", "name", "settings"),
    [
        (["--adapter", "dora"], "dora", {}),
        (["--adapter=dora"], "dora", {}),
        (["--adapter.name", "dora"], "dora", {}),
        (["--adapter.rank", "32"], "lora", {"rank": 32}),
        (["--adapter", "dora", "--adapter.rank=32", "--adapter.rslora"], "dora", {"rank": 32, "rslora": True}),
        (["--adapter.lr-ratio", "16", "--adapter.name=lora"], "lora", {"lr_ratio": 16.0}),
        (["--adapter.lr_ratio", "16"], "lora", {"lr_ratio": 16.0}),
        (["--adapter.targets", "q_proj,v_proj"], "lora", {"targets": ["q_proj", "v_proj"]}),
        (["--adapter", "full"], "full", {}),
    ],
)
def test_a_part_and_its_settings_on_the_command_line(parsed, argv, name, settings):
    adapter = parsed("tune", "m", "rows", *argv).adapter
    assert (adapter.name, adapter.settings) == (name, settings)


@pytest.mark.parametrize("flag", ["--optimizer.lr", "--rates.lr"])
def test_the_former_name_of_the_optimizers_settings(parsed, flag):
    assert parsed("train", "notes", flag, "0.01").optimizer == Choice("train/optimizers", "muon", {"lr": 0.01})


def test_a_former_name_in_a_recipe_and_in_python_warns():
    wanted = Choice("train/optimizers", "muon", {"lr": 0.01})
    assert resolve(Train, [("recipe", {"optimizer": {"lr": 0.01}})]).value.optimizer == wanted
    with pytest.warns(FormerName, match="rates is called optimizer now; settle [0-9.]+ will not take") as warned:
        assert resolve(Train, [("recipe", {"rates": {"lr": 0.01}})]).value.optimizer == wanted
    assert len(warned) == 1


def test_a_former_name_warns_once_on_stderr(home, tmp_path, capfd):
    """On the command line it is named as it was given, in a recipe as it is there; each once, and stdout is clean."""
    recipe = tmp_path / "r.toml"
    recipe.write_text("[rates]\nlr = 0.01\nbeta1 = 0.8\n")
    given = ["train", "no such file", "--recipe", str(recipe), "--rates.lr", "0.01"]
    assert main(given) == 2  # for the file that is not there
    out, err = capfd.readouterr()
    gone_in = Train.renamed["rates"].gone_in
    assert [line for line in err.splitlines() if "rates" in line] == [
        f"! --rates.lr is called --optimizer.lr now; settle {gone_in} will not take the former name",
        f"! rates is called optimizer now; settle {gone_in} will not take the former name",
    ]
    assert out == ""


def test_no_former_name_outlives_the_version_that_it_is_promised_to():
    """And each leads to a setting that is there."""
    settings = {Command.part(name) for name in Command.part_names()}
    renamed = [(command, now) for command in settings for now in getattr(command, "renamed", {}).values()]
    version = [int(number) for number in settle.__version__.split(".")]
    assert renamed
    for command, now in renamed:
        assert now.now in command.model_fields and [int(number) for number in now.gone_in.split(".")] > version


def test_the_part_of_a_choice():
    adapter = resolve(Tune, [("asked", {"model": "m", "adapter": {"name": "dora", "rank": 4}})]).value.adapter
    made = Adapter.make(adapter.name, adapter.settings)
    assert made == DoRA(rank=4) and made.part_name() == "dora"


def test_a_later_layer_goes_before_and_keeps_what_it_leaves_out():
    layers = [("recipe", {"model": "m", "adapter": {"name": "dora", "rank": 4}}), ("asked", {"adapter": {"alpha": 8}})]
    resolved = resolve(Tune, layers)
    assert resolved.value.adapter == Choice("model/adapters", "dora", {"rank": 4, "alpha": 8.0})
    origin = {key: where for key, where in resolved.origin.items() if key.startswith("adapter")}
    assert origin == {"adapter.name": "recipe", "adapter.rank": "recipe", "adapter.alpha": "asked"}


@pytest.mark.parametrize(
    ("adapter", "what", "fix"),
    [
        ("lor", "recipe: --adapter has no choice 'lor'", "did you mean 'lora'?"),
        (
            {"name": "lora", "rnk": 3},
            "recipe: adapter lora has no setting 'adapter.rnk'",
            "did you mean 'adapter.rank'?",
        ),
        ({"rank": "many"}, "recipe: adapter.rank = 'many': input should be a valid integer", "--help"),
        ({"rank": 0}, "recipe: adapter.rank = 0: input should be greater than 0", "--help"),
        ({"name": "full", "rank": 3}, "recipe: adapter full has no setting 'rank'", "leave --adapter.rank out"),
        ({"name": 3}, "recipe: adapter.name = 3 names no part", "dora, full, lora"),
        (3, "recipe: adapter = 3 names no part", "dora, full, lora"),
    ],
)
def test_what_is_no_choice_says_what_is(adapter, what, fix):
    with pytest.raises(UsageError) as e:
        resolve(Tune, [("recipe", {"model": "m", "adapter": adapter})])
    assert what in e.value.what and fix in e.value.fix


def test_only_parts_that_suit_can_be_chosen(capsys):
    assert main(["train", "notes", "--objective", "dpo"]) == 2
    assert "--objective has no choice 'dpo'\n  → choose one of: next-token" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "tune", "distill", "index"])
def test_help_shows_the_parts_and_their_settings(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    main([command, "--help-all"])
    shown = capsys.readouterr().out
    expected = {"train": "--optimizer.momentum", "tune": "--adapter.rank", "distill": "--objective.kind"}
    assert expected.get(command, "--chunker.overlap") in shown
    assert command != "tune" or ("Settings of --adapter dora or lora" in shown and "[default: 16]" in shown)
    assert command != "train" or "--objective.beta" not in shown


def test_parts_of_other_packages_are_chosen_and_shown(tmp_path):
    """An optimizer that another package brings: found by its entry point, shown and set like our own."""
    (tmp_path / "lion-1.dist-info").mkdir()
    (tmp_path / "lion-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: lion\nVersion: 1\n")
    (tmp_path / "lion-1.dist-info/entry_points.txt").write_text("[settle.train.optimizers]\nlion = lion_part:Lion\n")
    (tmp_path / "lion_part.py").write_text(
        textwrap.dedent(
            """
            from pydantic import Field
            from settle.train.optimizers import Optimizer

            class Lion(Optimizer):
                "Evolved sign momentum."
                lr: float = Field(1e-4, gt=0, description="learning rate of the lion")
                def bind(self, model): ...
                def bytes_per_parameter(self): return 4.0
            """
        )
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "COLUMNS": "300"}
    code = """
        from settle.base.settings import FormerName, resolve
        from settle.cli import main
        from settle.commands.make.train import Train
        from settle.train.optimizers import Optimizer
        chosen = resolve(Train, [("asked", {"optimizer": {"name": "lion", "lr": "0.5"}})]).value.optimizer
        made = Optimizer.make(chosen.name, chosen.settings)
        print(chosen.to_json(), made.part_name(), made.family())
        main(["train", "--help-all"])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True)
    assert done.stdout.startswith("{'name': 'lion', 'lr': 0.5} lion train/optimizers\n"), done.stderr
    assert "adamw, lion, muon" in done.stdout and "learning rate of the lion" in done.stdout
