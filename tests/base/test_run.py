import multiprocessing

import pytest

from settle.base.errors import ResourceError, RunError, UsageError
from settle.base.event_log import Events, read_records
from settle.base.events import Step
from settle.base.files import write_json
from settle.base.run import Run, free_name
from tests.records import into


def _hold(path, started, done):
    with Run(path).lock():
        started.set()
        done.wait(20)


def test_create_find_and_status(home):
    run = Run.create("train", "my-notes")
    assert run.name == "my-notes" and Run.find("my-notes").path == run.path
    assert run.status == "interrupted"
    write_json(run.path / "result.json", {"verdict": "settled"})
    assert run.status == "finished" and run.read("result.json")["verdict"] == "settled"
    assert free_name("my-notes") == "my-notes-2" and free_name("a b/c") == "a-b-c"


def test_taken_unusable_and_unknown_names(home):
    run = Run.create("train", "one")
    with pytest.raises(UsageError, match="exists already.*`settle resume one` goes on"):
        Run.create("train", "one")
    write_json(run.path / "result.json", {})
    with pytest.raises(UsageError, match="exists already.*`settle runs remove one`"):
        Run.create("train", "one")
    with pytest.raises(UsageError, match="not a usable name"):
        Run.create("train", "../x")
    with pytest.raises(UsageError, match="no run named 'two'") as e:
        Run.find("two")
    assert "one" in e.value.fix


def test_a_second_process_is_kept_out(home):
    run = Run.create("train", "busy")
    context = multiprocessing.get_context("spawn")
    started, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(run.path, started, done))
    other.start()
    assert started.wait(20)
    assert run.status == "running"
    with pytest.raises(RunError, match="another settle"), run.lock():
        pass
    other.kill()
    other.join()
    with run.lock():
        pass


def test_a_file_in_the_way_is_a_clear_error(home):
    (home / "runs").write_text("not a folder")
    with pytest.raises(ResourceError, match="cannot write"):
        Run.create("train", "x")


def test_a_damaged_file_is_named(home):
    run = Run.create("train", "x")
    (run.path / "plan.json").write_text('{"a": ')
    with pytest.raises(RunError, match=r"plan\.json is damaged"):
        run.read("plan.json")


def test_events_survive_a_torn_line_and_nan(tmp_path):
    path = tmp_path / "events.jsonl"
    heard = []
    events = Events(path, [into(heard)])
    events.emit(Step(step=1, tokens=1, loss=float("nan")))
    events.close()
    with path.open("a") as f:
        f.write('{"time": 1, "ki')
    events = Events(path)
    events.emit(Step(step=2, tokens=2, loss=1.0))
    events.close()
    kinds = [(e["kind"], e["step"], e["loss"]) for e in read_records(path) if e["kind"] != "opened"]
    assert kinds == [("step", 1, "nan"), ("step", 2, 1.0)] and len(heard) == 1
