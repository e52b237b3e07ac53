"""A run under torchrun: what makes ranks differ is refused, and the scripts that start it are valid."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from settle.audit.session import is_fenced
from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.run import Run
from settle.base.run.launcher import launched
from settle.jobs.job import RunJob, start
from settle.jobs.ranks.crew import differences
from settle.jobs.ranks.launch_script import script
from settle.jobs.ranks.prove_scale import RankTrial, _changes, parse_ranks
from settle.jobs.settings import JobSettings, TrainSettings, TuneSettings
from settle.machine.threads import num_threads
from tests.jobs.test_crew import free_port

FORECAST = {"time": {"value": 90.0, "low": 80.0, "high": 100.0}, "rank_memory": {"ranks": 32, "value": 5e9}}


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Say what torchrun says."""

    def say(**changed: object) -> None:
        values = {
            "RANK": 1,
            "WORLD_SIZE": 4,
            "LOCAL_RANK": 1,
            "LOCAL_WORLD_SIZE": 2,
            "MASTER_ADDR": "h",
            "MASTER_PORT": 9,
        }
        for name, value in {**values, **changed}.items():
            monkeypatch.setenv(name, str(value))
        launched.cache_clear()

    yield say
    monkeypatch.undo()
    launched.cache_clear()


def test_what_torchrun_says(torchrun: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched() is None
    torchrun(TORCHELASTIC_RUN_ID="none", TORCHELASTIC_RESTART_COUNT="2")
    launch = launched()
    assert launch is not None and (launch.rank, launch.size, launch.restarts, launch.is_local) == (1, 4, 2, False)
    assert str(os.getppid()) in launch.job
    torchrun(TORCHELASTIC_RUN_ID="mine", LOCAL_WORLD_SIZE=4)
    launch = launched()
    assert launch is not None and launch.job == "mine" and launch.is_local
    for wrong in ({"WORLD_SIZE": 0}, {"RANK": 4}, {"RANK": -1}, {"LOCAL_WORLD_SIZE": 5}, {"MASTER_PORT": "x"}):
        torchrun(**wrong)
        with pytest.raises(UsageError):
            launched()


def test_a_rank_leaves_whatever_its_threads_still_do() -> None:
    """Else the end of Python aborts it now and then, while a thread of gloo gives back a tensor."""
    code = (
        "import atexit, threading, time; from settle.base.run.launcher import leave; atexit.register(print, 'last'); "
        "print('first'); threading.Thread(target=time.sleep, args=(600,)).start(); leave(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split(), done.stderr) == (3, ["first", "last"], "")


def test_ranks_of_a_host_share_its_cores(torchrun: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from settle.machine import threads

    monkeypatch.setattr(threads, "cores", lambda: type("Cores", (), {"usable": 8}))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # what torchrun says where nobody chose
    assert num_threads() == 1 and num_threads(6) == 6
    torchrun(LOCAL_WORLD_SIZE=4)
    assert num_threads() == 2 and num_threads(6) == 2 and num_threads(1) == 1
    torchrun(LOCAL_WORLD_SIZE=4, WORLD_SIZE=64)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert num_threads() == 2


def test_a_job_that_cannot_be_shared_says_so(torchrun: Any, home: Path) -> None:
    torchrun()
    alone: RunJob[Any] = RunJob("shrink", (), JobSettings, object)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="one process, and torchrun started 4"):
        start(alone, JobSettings(inputs=["x"]), Events())
    assert not Run.all() and not is_fenced()


def test_ranks_that_differ_are_named() -> None:
    own: dict[str, Any] = {"host": "a", "code": "c1", "torch": "2.13", "data": "d", "recipe": {"steps": 5, "seed": 0}}
    assert differences(3, own, {**own, "host": "b"}) == []
    for key, value, words in (
        ("code", "c2", "settle's code of rank 3 on b differs: c2, rank 0 has c1"),
        ("torch", "2.12", "torch of rank 3 on b differs: 2.12, rank 0 has 2.13"),
        ("data", "e", "the tokens of rank 3 on b"),
        ("recipe", {"steps": 6, "seed": 0}, "steps is 6, rank 0 has 5"),
    ):
        assert words in differences(3, own, {**own, "host": "b", key: value})[0]
    assert differences(2, own, {"error": ["no such folder", "mount it"]}) == ["rank 2: no such folder", "mount it"]


@pytest.mark.parametrize("kind", ["torchrun", "slurm", "kubernetes", "skypilot"])
@pytest.mark.parametrize("hosts", [1, 4])
def test_the_scripts_are_valid_and_start_the_run(kind: str, hosts: int, tmp_path: Path) -> None:
    rows = tmp_path / "my rows.jsonl"
    rows.write_text("{}\n")
    settings = TuneSettings(model="smollm2", inputs=[str(rows)], name="it's", hosts=hosts, gpus=8, launch=kind, steps=9)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        script(kind, "train", TrainSettings(inputs=["-"]), {})
    settings = settings.model_copy(update={"name": "mine"})
    text = script(kind, "tune", settings, FORECAST)
    assert "time: 90 s (80 % interval 80 to 100)" in text
    assert "each of 32 ranks while it trains: 5e+09 bytes" in text
    shell = text
    if kind in ("kubernetes", "skypilot"):
        parsed = yaml.safe_load(text)
        if kind == "kubernetes":
            worker = parsed["spec"]["pytorchReplicaSpecs"]["Worker"]
            (container,) = worker["template"]["spec"]["containers"]
            assert (parsed["apiVersion"], parsed["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
            assert worker["replicas"] == hosts and parsed["spec"]["elasticPolicy"]["nProcPerNode"] == 8
            assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
            shell = container["args"][0]
        else:
            assert parsed["num_nodes"] == hosts and parsed["resources"]["accelerators"] == "H100:8"
            shell = parsed["run"]
    here = tmp_path / "here"
    here.mkdir()
    fake = "".join(f"{name}() {{ {body}; }}\n" for name, body in {
        "torchrun": 'printf "%s\\n" "$@" > asked', "srun": '"$@"', "scontrol": "echo first; echo second", "cd": ":",
    }.items())  # fmt: skip
    environment = {"HEAD": "first", "SLURM_JOB_NODELIST": "n", "SLURM_JOB_ID": "7", "SKYPILOT_NODE_IPS": "first\nx",
                   "SKYPILOT_NUM_NODES": str(hosts), "SKYPILOT_TASK_ID": "t", "PATH": os.environ["PATH"]}  # fmt: skip
    done = subprocess.run(["bash", "-c", fake + shell], cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    asked = (here / "asked").read_text().split("\n")
    assert asked[asked.index("-m") :][:6] == ["-m", "settle", "tune", "smollm2", "--recipe", "mine.toml"]
    assert asked[asked.index("--nproc-per-node") + 1] == "8"
    if kind == "slurm" or (hosts == 4 and kind != "kubernetes"):
        assert asked[asked.index("--rdzv-endpoint") + 1] == "first:29511" and asked[asked.index("--nnodes") + 1] == str(
            hosts
        )
    recipe = TuneSettings(model="smollm2", recipe=here / "mine.toml").with_recipe().value
    assert recipe.inputs == [str(rows)] and recipe.steps == 9 and recipe.launch is None and recipe.name == "mine"


def test_numbers_of_ranks() -> None:
    assert parse_ranks("1, 2,4") == [1, 2, 4]
    for wrong in ("", "0", "a", "1,-2", "65", "1;2"):
        with pytest.raises(UsageError):
            parse_ranks(wrong)
    assert _changes([1, 2, 3], 100) == [(2, 20), (1, 40), (3, 60), (2, 80), (1, 100)]
    alone, other = (RankTrial("x", losses, b"", 1.0, b"") for losses in ({0: 2.0, 5: 1.0}, {0: 2.0, 5: 1.1}))
    assert other.worst(alone) == pytest.approx(0.1) and alone.worst(alone) == 0
    assert RankTrial("x", {0: 2.0}, b"", 1.0, b"").worst(alone) == float("inf")


@pytest.fixture
def shared_run(tmp_path: Path) -> list[str]:
    """The command of a run of two ranks that share out the weights."""
    (tmp_path / "t.txt").write_text("\n\n".join(f"line {n} of the lever that turns {n % 7} times" for n in range(900)))
    return ["train", str(tmp_path / "t.txt"), "--name", "two", "--steps", "8", "--size", "30k", "--data.vocab-size",
            "300", "--dtype", "float32", "--sharding", "full", "--sample", "the lever",
            "--keep-checkpoints"]  # fmt: skip


def test_a_rank_with_another_recipe_is_named(home: Path, shared_run: list[str]) -> None:
    """Before the first step. Not forked from here: once torch's threads have run, a forked rank waits for them."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "settle", *shared_run, *others],
            env=os.environ | where | {"RANK": str(number), "LOCAL_RANK": str(number)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, others in enumerate(([], ["--seed", "7"]))
    ]
    said = " ".join("".join(rank.communicate(timeout=240)[1] for rank in ranks).split())
    assert all(rank.returncode for rank in ranks) and "seed is 7, rank 0 has 0" in said
    assert not Run.all()  # there is nothing to resume


def test_two_ranks_of_torchrun_make_one_run(home: Path, shared_run: list[str]) -> None:
    """It shares out the weights, trains, tells where each row went, writes samples, and is exported whole."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "settle",
         *shared_run],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    run = Run.find("two")
    steps = [json.loads(line) for line in (run.path / "order.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == list(range(1, 9)) and run.status == "finished"
    assert not list((run.path / "ranks").glob("*"))  # no rank had a fault
    assert len(list((run.path / "audit").glob("*"))) == 2  # each rank keeps its ledger
    assert "Nothing left this machine" in done.stderr
    assert "each of 2 ranks needs about" in done.stderr and "a step of 2 ranks takes" in done.stderr
    newest = sorted(run.checkpoints.iterdir())[-1]
    assert {f"model.{rank}.safetensors" for rank in (0, 1)} <= {file.name for file in newest.iterdir()}
    events = [json.loads(line) for line in run.events.read_text().splitlines()]
    assert [e["moment"] for e in events if e["kind"] == "sample"] == ["start", "middle", "end"]
    result = run.read("result.json")
    assert result is not None and result["gate"] and list(run.out.glob("*.gguf"))
