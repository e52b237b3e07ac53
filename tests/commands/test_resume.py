"""settle resume: real processes that are really stopped, and run folders that a hand has changed."""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from settle.base.run import Run
from settle.cli import main

STEPS = 60
SETTINGS = [
    "--name", "r", "--size", "60k", "--steps", str(STEPS), "--dtype", "float32", "--context", "32",
    "--batch-tokens", "128", "--threads", "1", "--data.vocab-size", "400", "--keep-checkpoints",
]  # fmt: skip


def start(home: Path, *argv: str) -> subprocess.Popen[str]:
    env = os.environ | {"SETTLE_HOME": str(home)}
    command = [sys.executable, "-m", "settle", *argv]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(home: Path, text: str, process: subprocess.Popen[str]) -> None:
    """Until the run's events contain `text`."""
    while process.poll() is None:
        if any(text in p.read_text() for p in home.glob("runs/*/events.jsonl")):
            return
        time.sleep(0.01)
    raise AssertionError(process.communicate()[0])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a run that SIGTERM stopped between its steps 20 and 60."""
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "data").mkdir()
    for number in range(40):
        text = " ".join(f"{(number * 7 + i * i) % 97} vok{(i * number) % 13}ma" for i in range(150))
        (folder / "data" / f"{number}.txt").write_text(text)
    process = start(folder / "home", "train", str(folder / "data"), *SETTINGS)
    wait_for(folder / "home", '"kind": "checkpoint", "step": 20', process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    assert process.returncode == 130 and "`settle resume r` continues" in out
    return folder


@pytest.fixture
def home(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as SETTLE_HOME."""
    shutil.copytree(stopped / "home", tmp_path / "home")
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP")
@pytest.mark.parametrize("ignored", [False, True], ids=["terminal", "nohup"])
def test_a_terminal_that_closes_saves_the_step_unless_it_is_ignored(
    stopped: Path, tmp_path: Path, ignored: bool
) -> None:
    """A process with a terminal of its own, which then closes: the system sends SIGHUP, and nothing can be written."""
    import pty

    master, slave = pty.openpty()
    signals = f"import signal; signal.signal(signal.SIGHUP, signal.{'SIG_IGN' if ignored else 'SIG_DFL'}); "
    take = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    longer = 4 * STEPS  # far from its end when the terminal closes, however late that is noticed
    argv = ["settle", "train", str(stopped / "data"), *(str(longer) if s == str(STEPS) else s for s in SETTINGS)]
    code = f"{take}{signals}import sys; sys.argv = {argv!r}; from settle.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"SETTLE_HOME": str(tmp_path)}, text=True,
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    closing = threading.Event()
    reader = threading.Thread(target=drain, args=(master, closing), daemon=True)
    reader.start()
    wait_for(tmp_path, '"kind": "checkpoint", "step": 20', process)
    closing.set()
    reader.join()
    os.close(master)
    assert process.wait(60) == (0 if ignored else 130)
    (run,) = (tmp_path / "runs").iterdir()
    lines = (run / "events.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if '"kind": "step"' in line]
    saved = max(int(path.name) for path in (run / "checkpoints").iterdir())
    assert saved == steps[-1] and (steps[-1] == longer) == ignored == (run / "result.json").exists()


def drain(master: int, closing: threading.Event) -> None:
    """Read what a terminal is shown, until it is to be closed: it stays open as long as a thread reads it."""
    with contextlib.suppress(OSError):
        while not closing.is_set():
            if select.select([master], [], [], 0.01)[0]:
                os.read(master, 4096)


def edit(key: str, change: Any) -> None:
    path = Run.find("r").path / "plan.json"
    plan = json.loads(path.read_text())
    *groups, last = key.split(".")
    place = plan
    for group in groups:
        place = place[group]
    if change is None:
        del place[last]
    else:
        place[last] = change
    path.write_text(json.dumps(plan))


def refusal(capfd: pytest.CaptureFixture[str]) -> str:
    assert main(["resume", "r"]) == 1
    told = capfd.readouterr().err
    assert "Traceback" not in told
    return told


def test_it_goes_on_to_the_end_and_adds_up_what_was_spent(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(home / "tokens")  # they are made again
    run = Run.find("r")
    states = [json.loads(p.read_text()) for p in sorted(run.checkpoints.glob("*/state.json"))]
    (run.checkpoints / ".00000040.part").mkdir()
    (run.path / ".result.json.99.part").write_text("{")
    assert main(["resume", "r", "--json"]) == 0
    out, err = capfd.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert "resuming from step" in err and "made again" in err
    assert result["actual"]["time"] > states[-1]["spent"]["seconds"] > 0
    assert result["actual"]["energy"] > states[-1]["spent"]["joules"] > 0
    assert not [p for p in run.path.rglob(".*") if p.name != ".lock"]
    assert main(["resume", "r"]) == 0  # finished: says so, and changes nothing
    assert "is finished" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("dtype", "bfloat16"),
        ("loop.seed", 5),
        ("optimizer.lr", 0.5),
        ("architecture.hidden_size", 96),
        ("corpus", "f00"),
    ],
)
def test_a_plan_that_was_changed_is_refused_by_its_key(home: Path, capfd: Any, key: str, change: Any) -> None:
    edit(key, change)
    assert f"plan.json of r was changed: {key} is {change!r}" in refusal(capfd)


@pytest.mark.parametrize("key", ["dtype", "loop", "corpus", "loop.clip"])
def test_a_plan_that_lacks_a_key_is_refused_by_it(home: Path, capfd: Any, key: str) -> None:
    edit(key, None)
    assert key in refusal(capfd)


def test_a_plan_of_a_newer_version_is_refused_by_its_number(home: Path, capfd: Any) -> None:
    edit("version", 99)
    assert "plan.json of r has version 99; this settle reads versions up to 1" in refusal(capfd)


def test_without_checkpoints_a_spoiled_plan_is_still_refused_mannerly(home: Path, capfd: Any) -> None:
    shutil.rmtree(Run.find("r").checkpoints)
    for key, change in (("dtype", "float33"), ("loop", 7), ("architecture", {"hidden_size": "wide"})):
        edit(key, change)
        assert "plan.json of r was changed" in refusal(capfd)


def test_damaged_files_of_a_run_are_named(home: Path, capfd: Any) -> None:
    path = Run.find("r").path / "plan.json"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    assert "plan.json is damaged" in refusal(capfd)
    path.write_text("[]")
    assert "it is not an object" in refusal(capfd)
    path.unlink()
    recipe = path.with_name("recipe.toml")
    recipe.write_text("= nothing")
    assert main(["resume", "r"]) == 2 and "recipe.toml is not valid TOML" in capfd.readouterr().err
    recipe.unlink()
    assert "neither plan.json nor recipe.toml" in refusal(capfd)


def test_other_data_than_it_began_with_is_refused(home: Path, stopped: Path, capfd: Any) -> None:
    shutil.rmtree(home / "tokens")
    added = stopped / "data" / "added.txt"
    added.write_text("something that was not there before " * 30)
    try:
        assert "the data has changed since the run began: corpus is" in refusal(capfd)
    finally:
        added.unlink()


def test_a_run_killed_before_its_plan_starts_again_from_its_recipe(home: Path, capfd: Any) -> None:
    run = Run.find("r")
    shutil.rmtree(run.checkpoints)
    shutil.rmtree(run.out)
    (run.path / "plan.json").unlink()
    assert main(["resume", "r"]) == 0
    assert "starts again" in capfd.readouterr().err and (run.path / "result.json").exists()


def test_two_at_once_on_one_run(home: Path, capfd: Any) -> None:
    with Run.find("r").lock():
        assert "another settle is working on 'r'" in refusal(capfd)


def test_a_run_that_may_not_be_written_to(home: Path, tmp_path: Path, capfd: Any) -> None:
    if os.geteuid() != 0 or subprocess.run(["mount", "--bind", home, home], capture_output=True).returncode:
        pytest.skip("only root can mount a folder read-only")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", home], check=True)
        for argv in (["resume", "r"], ["train", str(tmp_path), "--name", "other"]):
            assert main(argv) == 1
            told = capfd.readouterr().err
            assert "Read-only file system" in told and "Traceback" not in told
    finally:
        subprocess.run(["umount", "-l", home], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=50m", "settle", str(place)]
    if os.name == "nt" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this system lets us mount no small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_up_while_handing_over_loses_nothing(
    stopped: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    home = small_disk / "home"
    shutil.copytree(stopped / "home", home)
    monkeypatch.setenv("SETTLE_HOME", str(home))
    run = Run.find("r")
    assert main(["resume", "r"]) == 0
    (run.path / "result.json").unlink()  # as if it had been killed after its last step
    shutil.rmtree(run.out)
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(home).free - 150_000))
    told = refusal(capfd)
    assert "the trained weights are safe" in told and "`settle resume r` exports them" in told
    (small_disk / "ballast").unlink()
    assert main(["resume", "r"]) == 0 and (run.out / "r.gguf").exists()


def test_ctrl_c_before_the_first_step_leaves_nothing(stopped: Path, tmp_path: Path) -> None:
    home = tmp_path / "fresh"
    process = start(home, "train", str(stopped / "data"), *SETTINGS)
    while process.poll() is None and not list(home.glob("runs/*/recipe.toml")):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    shown = process.communicate()[0]
    began = list(home.glob("runs/*/plan.json"))  # a fast machine may have begun already
    assert process.returncode == 130, shown
    assert began or (not list(home.glob("runs/*")) and not list(home.glob("tokens/.work*")))


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once_and_keeps_the_last_checkpoint(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "twice"
    process = start(home, "train", str(stopped / "data"), *SETTINGS)
    wait_for(home, '"kind": "checkpoint", "step": 20', process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    process.communicate()
    monkeypatch.setenv("SETTLE_HOME", str(home))
    assert main(["resume", "r"]) == 0
