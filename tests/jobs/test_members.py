"""`settle train --members`: models by other seeds, and one plain model that is distilled from all of them."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from settle.base.event_log import read_records
from settle.base.files import read_json, write_json
from settle.base.run import Run
from settle.base.run.result import Result
from settle.cli import main
from settle.jobs import train as train_job
from settle.jobs.settings import STUDENT_PASSES, FollowerSettings, TrainSettings, student_steps
from settle.jobs.train import LEAST_SHARE, SEEDS_APART, TEXT_SHARE, seconds_left
from settle.library.pretrained import open_pretrained
from settle.library.resolve import resolve_gguf
from tests.conftest import write_text
from tests.jobs.test_refit import interrupted, weights

SETTINGS = [
    "--size", "60k", "--dtype", "float32", "--context", "32", "--batch-tokens", "128", "--threads", "1",
    "--data.vocab-size", "400",
]  # fmt: skip


def runs(name: str, members: int) -> list[Run]:
    return [Run.find(name), *map(Run.find, TrainSettings(members=members).followers(name))]


class Command(NamedTuple):
    """A home, and what a command there returned, printed and said."""

    home: Path
    code: int
    printed: dict[str, Any]
    said: str


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Three members, and what was distilled from them."""
    folder = tmp_path_factory.mktemp("members")
    argv = ["train", str(write_text(folder / "text.txt")), *SETTINGS, "--steps", "40", "--name", "a"]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setenv("SETTLE_HOME", str(folder / "home"))
        code = main([*argv, "--members", "3", "--json"])
    return Command(folder / "home", code, json.loads(out.getvalue().splitlines()[-1]), err.getvalue())


def test_members_differ_in_their_seed_and_teach_one_plain_model(
    trained: Command, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, code, printed, said = trained
    monkeypatch.setenv("SETTLE_HOME", str(home))
    chain = runs("a", 3)
    assert [run.name for run in chain] == ["a", "a-member2", "a-member3", "a-distilled"]
    plans, results = [run.read("plan.json") for run in chain], [run.result() for run in chain]
    student, made = chain[-1], results[-1]
    assert made and printed == made.to_json() and code == made.exit_code
    assert "2 further models and the one distilled from all take about" in said
    assert [plan["loop"]["seed"] for plan in plans] == [number * SEEDS_APART for number in range(4)]
    for plan in plans[1:]:
        changed = {key for key, value in plans[0]["loop"].items() if plan["loop"][key] != value}
        assert changed - {"max_steps", "step_seconds"} == {"seed", "until_settled"}
        assert plan["corpus"] == plans[0]["corpus"] and plan["asked"]["of"] == chain[0].path.name
    rates = [[e["lr"] for e in read_records(run.events) if e["kind"] == "step"] for run in chain]
    assert rates[0] == rates[1] == rates[2] and len(rates[3]) == round(40 * STUDENT_PASSES)
    assert all(result and result.gate and result.gate["passed"] and result.best for result in results)
    learned = plans[-1]["objective_settings"]
    assert plans[-1]["objective"] == "distill" and plans[0]["objective"] == plans[1]["objective"] == "next_token"
    assert [learned["teacher"], *learned["others"]] == [str(run.out / "hf") for run in chain[:3]]
    assert learned["text"] == TEXT_SHARE and len(learned["teacher_sha256"].split(",")) == 3
    compared = made.comparison
    assert compared and made.best and compared["judged"]["name"] == "a"
    assert compared["bits_per_byte"] == pytest.approx(made.best.bits_per_byte)
    assert compared["judged"]["bits_per_byte"] == pytest.approx(results[0].best.bits_per_byte, rel=0.02)  # type: ignore[union-attr]
    assert f"{made.best.bits_per_byte:.4f} bits per byte against" in made.headline and made.headline in said
    assert made.headline in (student.out / "card.md").read_text()
    first, last = (open_pretrained(str(run.out / "hf")).part for run in (chain[0], student))
    assert first == last and resolve_gguf("a-distilled").source.path == student.out / "a-distilled.gguf"
    code = {"better": 0}.get(made.comparison["verdict"], 3)  # type: ignore[index]
    assert main(["eval", "a-distilled", "--verify"]) == code
    assert f"verdict.json holds: {made.headline}" in " ".join(capfd.readouterr().err.split())
    assert main(["resume", "a"]) == 0 and "nothing to resume" in capfd.readouterr().err


def test_a_member_without_a_model_is_left_out(
    trained: Command, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained.home, tmp_path / "home")
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path / "home"))
    chain = runs("a", 3)
    failed = read_json(chain[1].path / "result.json") | {"verdict": "diverged"}
    write_json(chain[1].path / "result.json", failed)
    shutil.rmtree(chain[1].out / "hf")
    for run in chain[2:]:
        shutil.rmtree(run.path)
    capfd.readouterr()
    assert main(["resume", "a"]) in (0, 3)
    assert "a-distilled learns from 2 models" in capfd.readouterr().err
    learned = Run.find("a-distilled").read("plan.json")["objective_settings"]
    assert learned["others"] == [str(Run.find("a-member3").out / "hf")]


def test_it_is_resumed_wherever_it_was_stopped_to_the_same_bits(text: Path, capfd: Any) -> None:
    argv = ["train", str(text), *SETTINGS, "--steps", "45", "--members", "2", "--name"]
    main([*argv, "whole"])
    command = [*argv, "cut"]
    for name in ("cut-member2", "cut-distilled"):
        assert interrupted(command, name) == 130
        assert f"`settle resume {name}` continues" in capfd.readouterr().err
        assert Run.find("cut").status == "finished" and Run.find(name).status == "interrupted"
        command = ["resume", "cut"]
    code = main(["resume", "cut-distilled", "--json"])
    made = Run.find("cut-distilled").result()
    assert made and code == made.exit_code and json.loads(capfd.readouterr().out.splitlines()[-1]) == made.to_json()
    for one, other in zip(runs("whole", 2), runs("cut", 2), strict=True):
        assert all((weights(one)[name] == weight).all() for name, weight in weights(other).items())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--members", "1"], "greater than or equal to 2"),
        (["--members", "4", "--refit"], "--members does not go with --refit"),
        (["--members", "4", "--seeds", "3"], "--members does not go with --seeds"),
        (["--members", "4", "--launch", "slurm"], "--members does not go with --launch"),
        (["--members", "2", "--name", "n" * 60], "is too long"),
    ],
)
def test_what_does_not_go_with_members_is_refused(text: Path, capfd: Any, more: list[str], said: str) -> None:
    assert main(["train", str(text), *SETTINGS, *more]) == 2
    assert said in " ".join(capfd.readouterr().err.split()) and not Run.all()


def test_ranks_and_taken_names_are_refused(text: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["train", str(text), *SETTINGS, "--steps", "20", "--name", "c-distilled"]) == 0
    assert main(["train", str(text), *SETTINGS, "--name", "c", "--members", "2"]) == 2
    assert "'c-distilled' exists already" in " ".join(capfd.readouterr().err.split())
    monkeypatch.setattr(train_job, "launched", lambda: SimpleNamespace(size=2))
    assert main(["train", str(text), *SETTINGS, "--name", "d", "--members", "2"]) == 2
    assert "--members trains in one process" in capfd.readouterr().err


def test_a_time_budget_is_for_all_of_them(text: Path, capfd: Any) -> None:
    argv = ["train", str(text), "--size", "60k", "--threads", "1", "--dry", "--json", "--time", "20m", "--members", "4"]
    assert main(argv) == 0
    made = json.loads(capfd.readouterr().out.splitlines()[-1])
    share = 1200 / (4 + student_steps(4))
    assert 0.8 * share < made["plan"]["loop"]["seconds"] < share + 30
    assert made["plan"]["loop"]["seconds"] + made["members"]["time"] < 1200 + 30


def test_the_student_gets_the_time_that_the_others_left_but_half_of_its_share_at_least() -> None:
    asked = FollowerSettings(of="a", time="100s", members=2)
    for spent, left in ((30.0, 40.0), (60.0, LEAST_SHARE * 100 * student_steps(2) / (2 + student_steps(2)))):
        made = [Result(verdict="settled", actual={"time": spent})] * 2
        assert seconds_left(asked, made) == pytest.approx(left)
    assert seconds_left(FollowerSettings(of="a", steps=100, members=2), []) is None
