"""What stages decide from the figures of a run: the time that is left, what is usable, what was changed."""

import errno
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from settle.base.errors import DataError, ResourceError, RunError
from settle.base.event_log import Events
from settle.base.files import write_json
from settle.base.run import Run
from settle.base.run.result import Evaluated
from settle.base.words.sentences import NOTHING_KEPT
from settle.data.layouts import Example
from settle.jobs import distill, job, training_stages, tune, tuning_stages
from settle.jobs.distill import DistillContext, _layer_map, draft_prompts
from settle.jobs.job import Job, asked_settings, find_job, follow, interrupt, job_of, sweep
from settle.jobs.settings import DistillSettings, TrainSettings, TuneSettings
from settle.jobs.training_stages import TrainingContext, _flat, _refuse_changes, seconds_noted, seconds_of
from settle.jobs.tuning_stages import TuningContext
from settle.train.verdict import LoopVerdict
from tests.records import into


def heard_by(heard: list[Any]) -> Events:
    return Events(listeners=[into(heard)])


def run_named(home: Path, name: str = "r", command: str = "train") -> Run:
    run = Run.create(command, name)
    for folder in (run.out, run.checkpoints):
        folder.mkdir(exist_ok=True)
    return run


def context(kind: type[Any] = TrainingContext, settings: Any = None, **more: Any) -> Any:
    """A context with only what is given; its time budget is 100 seconds, of which 40 are spent."""
    made = kind.__new__(kind)
    loop = SimpleNamespace(seconds=100.0, threads=2, tokens_per_step=10, waiting=1.0, seconds_comparing=9.0)
    plan = SimpleNamespace(loop=loop, device="cpu")
    usual = {
        "plan": plan, "spending": SimpleNamespace(total=40.0, seconds=4.0), "phases": {}, "estimates": {},
        "verdict": LoopVerdict("settled", "why"), "best": Evaluated(), "actual": {}, "files": {}, "gate": None,
        "comparison": None, "outlook": None,
        "record": None, "base": None, "settings": settings or TrainSettings.model_validate({"inputs": ["x"]}),
        "compared": [], "resources": None, "exit_code": None, "safe": "",
        "loop": SimpleNamespace(watch=SimpleNamespace(time=SimpleNamespace(slowdown=1.0))),
    }  # fmt: skip
    for key, value in {**usual, **more}.items():
        setattr(made, key, value)
    return made


# Time


def test_the_time_that_is_left_is_the_plan_s_or_the_budget_s() -> None:
    c = context(phases={"loop": 30.0, "judge": 5.0, "export": 7.0})
    assert c.seconds_left("loop") == 60.0 and c.seconds_left("unknown") == 60.0  # before the loop ended: the budget
    c.outcome, c.loop = 1, SimpleNamespace(watch=SimpleNamespace(time=SimpleNamespace(slowdown=2.0)))
    assert c.seconds_left("judge") == 2 * 12.0 + 2 * training_stages.RESULT_SECONDS  # it may end before its time
    assert c.seconds_left("unknown") == 60.0
    c.spending.total = 95.0
    assert c.seconds_left("judge") == 5.0
    c.spending.total = 120.0
    assert c.seconds_left("judge") == 0.0
    free = context(plan=SimpleNamespace(loop=SimpleNamespace(seconds=None)), phases={"loop": 30.0, "judge": 5.0})
    assert free.seconds_left("judge") == 5.0 and free.seconds_left("unknown") is None
    assert free.seconds_to_compare is None
    loop = SimpleNamespace(watch=SimpleNamespace(time=SimpleNamespace(slowdown=2.0)))
    c = context(loop=loop)
    c.plan.loop.waiting = 3.0  # the probe's machine was busy
    assert c.seconds_to_compare == 100.0 - 40.0 - 4 * training_stages.RESULT_SECONDS
    assert context(spending=SimpleNamespace(total=99.0), loop=loop).seconds_to_compare == 0.0


def test_a_budget_is_known_before_the_plan() -> None:
    early = context(settings=TrainSettings.model_validate({"inputs": ["x"], "time": "2m"}))
    assert early.budget == 100.0
    del early.plan
    assert early.budget == 120.0
    late = context()
    del late.plan
    assert late.budget is None


def test_a_stage_s_pace_is_remembered_where_it_was_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(training_stages, "remember", lambda *what: kept.append(what))
    state = SimpleNamespace(stop="settled", best_step=3)
    c = context(
        estimates={"export": 4.0, "compare": 9.0},
        outcome=SimpleNamespace(state=state),
        verdict=LoopVerdict("settled", "why"),
    )
    for stage in ("export", "compare", "loop"):
        c.finished(stage, 5.0)
    # by what the plan would have been at the pace of the loop's end
    assert kept == [("export", 2, 4.0, 5.0), ("compare TrainSettings", 2, 9.0, 5.0)]
    c.loop = SimpleNamespace(watch=SimpleNamespace(time=SimpleNamespace(slowdown=2.0)))
    c.finished("export", 5.0)
    assert kept.pop() == ("export", 2, 8.0, 5.0)
    c.verdict = LoopVerdict("broken", "why")
    c.finished("export", 5.0)
    assert len(kept) == 2


@pytest.mark.parametrize(
    ("verdict", "stop", "best", "is_usable"),
    [
        ("settled", "settled", 0, True), ("diverged", "diverged", 5, False), ("broken", "broken", 5, True),
        ("broken", "broken", 0, False), ("broken", "settled", 5, False), ("out of budget", "tokens", 0, True),
    ],
)  # fmt: skip
def test_a_slow_starter_s_weights_are_usable(verdict: str, stop: str, best: int, is_usable: bool) -> None:
    state = SimpleNamespace(stop=stop, best_step=best)
    c = context(
        outcome=SimpleNamespace(state=state), verdict=LoopVerdict(verdict, "why"), folder=SimpleNamespace(name="r")
    )
    c.live = SimpleNamespace(tokenizer=SimpleNamespace(chat_template=""))
    assert c.is_usable == is_usable and bool(c.next_steps()) == is_usable


def test_the_next_command_completes_a_text_or_chats() -> None:
    c = context(verdict=LoopVerdict("settled", "why"), folder=SimpleNamespace(name="r"))
    c.outcome, c.live = SimpleNamespace(state=None), SimpleNamespace(tokenizer=SimpleNamespace(chat_template="x"))
    assert c.next_steps() == "`settle chat r Once` · `settle serve` · `settle runs show r`"
    c.base = object()
    assert c.next_steps().startswith("`settle chat r` · ")
    c.live.tokenizer.chat_template, c.settings = "", TrainSettings.model_validate({"inputs": ["x"], "sample": "a 'b'"})
    assert c.next_steps().startswith("`settle chat r 'a '\"'\"'b'\"'\"''` · ")


def test_files_of_the_model_come_before_the_card() -> None:
    c = context(files={"card": "c", "gguf": "old"})
    c.add_files({"gguf": "g"})
    assert list(c.files) == ["gguf", "card"]


# Changes of a plan


def test_the_first_key_that_was_changed_is_named(home: Path) -> None:
    run = run_named(home)
    before = {"a": 1, "b": {"c": 2, "d": None}}
    _refuse_changes(run, {"a": 1, "b": {"c": 2, "d": None}}, before)
    _refuse_changes(
        run, {"a": 1, "b": {"c": 2}, "e": {"f": 0}}, before
    )  # a newer key at its default, an older one gone
    for now, says in (
        ({"a": 1, "b": {"c": 3, "d": None}}, "b.c is 3, the checkpoints were made with 2"),
        ({"a": 1, "b": {"c": 2, "d": 0}}, "b.d is 0, the checkpoints were made with None"),
        ({"b": {"c": 2, "d": None}}, "a is None, the checkpoints were made with 1"),
        ({"a": 1, "b": {"c": 2, "d": None}, "e": 5}, "e is 5, the checkpoints were made with None"),
    ):
        with pytest.raises(RunError, match=f"plan.json of r was changed: {says}"):
            _refuse_changes(run, now, before)
    assert _flat({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}


def test_seconds_of_earlier_sessions() -> None:
    assert seconds_of({"spent": {"seconds": 3}}) == 3.0 and seconds_of({"spent": {"seconds": "x"}}) == 0.0
    assert seconds_of(None) == seconds_of({}) == seconds_of({"spent": 4}) == 0.0


def test_a_session_that_was_killed_worked_until_its_last_event(tmp_path: Path) -> None:
    """Not while the computer slept, nor between two sessions."""
    run = Run(tmp_path)
    assert seconds_noted(run) == 0.0
    lines = [
        ("opened", 100.0, {}), ("phase", 101.0, {"elapsed": 7.0}), ("step", 104.0, {}), ("step", 109.0, {}),
        ("opened", 900.0, {}), ("phase", 903.0, {"elapsed": 20.0}), ("step", 910.0, {}), ("step", 1910.0, {}),
        ("step", 1912.0, {}),
    ]  # fmt: skip
    text = [json.dumps({"time": at, "kind": kind, **more}) for kind, at, more in lines]
    for number, seconds in ((4, 15.0), (7, 27.0), (9, 20.0 + 7.0 + training_stages.LONGEST_PAUSE + 2.0)):
        run.events.write_text("\n".join(text[:number]) + "\n")
        assert seconds_noted(run) == seconds


def test_other_versions_and_threads_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    c = context(record={"versions": {"torch": "1.0"}}, events=heard_by(heard))
    monkeypatch.setattr(training_stages.importlib.metadata, "version", lambda package: "2.0")
    training_stages._warn_of_versions(c)
    assert [e["text"] for e in heard] == [
        "torch was 1.0 and is 2.0 now: the run continues, but not bit for bit the same"
    ]
    heard.clear()
    for dtype, threads, says in (("float32", 3, 1), ("float32", 2, 0), ("bfloat16", 3, 0), ("float32", None, 0)):
        heard.clear()
        c.plan.dtype = dtype
        monkeypatch.setattr(training_stages, "commanded", lambda threads=threads: threads)
        training_stages._warn_of_threads(c)
        assert len(heard) == says


def test_data_that_were_deleted_are_made_again_but_not_from_stdin() -> None:
    heard: list[Any] = []
    c = context(events=heard_by(heard))
    assert training_stages.restored_data(c, cast(Any, "corpus")) and c.corpus == "corpus" and not heard
    assert not training_stages.restored_data(c, None) and "made again" in heard[0]["text"]
    c.settings = TrainSettings.model_validate({"inputs": ["-"]})
    with pytest.raises(RunError, match="they came from stdin"):
        training_stages.restored_data(c, None)


def test_memory_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    monkeypatch.setattr(tuning_stages, "memory", lambda: SimpleNamespace(available=2e9))
    monkeypatch.setattr(tuning_stages, "resident", lambda: 1e9)
    c = context(TuningContext, events=heard_by(heard))
    tuning_stages._warn_of_memory(c, 3e9)
    c.plan.device = "cuda"
    tuning_stages._warn_of_memory(c, 4e9)
    assert not heard
    c.plan.device = "cpu"
    tuning_stages._warn_of_memory(c, 4e9)
    assert heard[0]["text"].startswith("4.0 GB of memory are expected, 3.0 GB are there")


def test_what_draws_is_loaded_before_the_time_of_a_run_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first import takes seconds on a new machine, which a run by the clock must not find at its end."""
    loads: list[str] = []
    monkeypatch.setattr(training_stages, "load_drawing", lambda: loads.append("drawing"))
    training_stages.earlier_session(context())
    assert loads == ["drawing"]
    training_stages.earlier_session(context(plan=SimpleNamespace(loop=SimpleNamespace(seconds=None))))
    assert loads == ["drawing"]


def test_a_comparison_s_time_is_corrected_by_what_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tuning_stages, "correction", lambda name, threads: 3.0 if name == "compare DistillSettings" else 1.0
    )
    settings = DistillSettings.model_validate({"inputs": ["x"], "teacher": "t", "draft": True})
    plan = SimpleNamespace(loop=SimpleNamespace(seconds=100.0, threads=2), held_out_tokens=50)
    c = context(DistillContext, settings, plan=plan, live=SimpleNamespace(plan=plan))
    assert c.comparison_estimate(0.1) == 2 * distill.COMPARED_IN_FP32 * 50 * 0.1
    assert c.comparing(0.1) == 3 * 20.0 + c.draft_seconds and c.estimates == {"compare": 60.0}
    assert c.draft_seconds == distill.DRAFT_TIME * 100 and c.seconds_of(0.5) == 30.0
    c.leave_out_pace()
    assert c.estimates == {}
    c.spending.total = 120.0
    assert c.seconds_of(0.5) == 0.0
    c.plan.loop.seconds = None
    assert c.draft_seconds == 0.0 and c.seconds_of(0.5) is None
    c.settings = DistillSettings.model_validate({"inputs": ["x"], "teacher": "t"})
    c.plan.loop.seconds = 100.0
    assert c.draft_seconds == 0.0
    assert context(TuningContext).comparison_estimate(1.0) == 0.0


# Distilling


def test_a_shorter_student_matches_the_last_block_before_the_next(home: Path) -> None:
    c = context(DistillContext, folder=run_named(home, command="distill"))
    c.made_file.parent.mkdir()
    for report, layers in (
        ([{"pruner": "depth", "blocks": [6, 4], "removed": [1, 4]}], [1, 2, 4, 5]),
        ([{"pruner": "depth", "blocks": [4, 3], "removed": [3]}], [0, 1, 3]),
        ([{"pruner": "width"}], []),
        ([{"pruner": "depth", "blocks": [6, 4], "removed": [1, 4]}, {"pruner": "width"}], []),
    ):
        write_json(c.made_file, report)
        assert _layer_map(c) == layers
    c.made_file.unlink()
    assert _layer_map(c) == []


def test_a_draft_is_measured_on_beginnings_of_texts() -> None:
    texts = [np.arange(40), np.arange(5), np.arange(50), np.arange(60)]
    store = SimpleNamespace(num_documents=4, document=lambda i: texts[i])
    corpus: Any = SimpleNamespace(kind="text", held_out=store)
    live: Any = None
    assert draft_prompts(corpus, live, 3) == [list(range(32))] * 2 and len(draft_prompts(corpus, live, 9)) == 3
    texts[:] = [np.arange(4)] * 4
    assert draft_prompts(corpus, live, 2) == [[0, 1, 2, 3]] * 2


def test_pruning_may_take_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "ceiling", lambda shapes, seconds: 1000.0)
    monkeypatch.setattr(distill, "shapes", lambda part, tokens: None)
    heard: list[Any] = []
    c = context(DistillContext, events=heard_by(heard), teacher=SimpleNamespace(part=None))
    work = distill._pruning_work(c)
    assert work.flops == pytest.approx(0.2 * 60.0 * 1000.0 * distill.LAYER_EFFICIENCY)
    assert work.on_progress("width", 1, 4) and (heard[0]["what"], heard[0]["total"]) == ("prune width", 4)
    c.spending.total = 40.0 + 0.2 * 60.0
    assert not work.on_progress("width", 2, 4)
    c.plan.loop.seconds = None
    free = distill._pruning_work(c)
    assert free.flops is None and free.on_progress("width", 3, 4)


# The life of a run


def job_of_stages(*stages: Any) -> Job[Any]:
    return Job("train", stages)


def test_stages_run_in_order_until_one_ends_the_session(home: Path, tmp_path: Path) -> None:
    heard: list[Any] = []
    done: list[str] = []
    run = Run(tmp_path)
    c = context(events=heard_by(heard), folder=run, resources=ExitStack())
    c.phases = {"first": 2.0, "last": 3.0}
    c.finished = lambda stage, seconds: done.append(f"{stage} {seconds >= 0}")
    c.resources.callback(lambda: done.append("closed"))

    def first(c: Any) -> None:
        done.append("1")

    def last(c: Any) -> None:
        interrupt(c, "saved at step 7")

    assert follow(job_of_stages(first, last, first), c) is c and c.exit_code == 130
    assert done == ["1", "first True", "last True", "closed"]
    assert [(e["phase"], e["elapsed"], e["left"]) for e in heard if e["kind"] == "phase"] == [
        ("first", 40.0, 60.0), ("last", 40.0, 60.0),
    ]  # fmt: skip
    assert heard[-1]["text"] == f"saved at step 7; `settle resume {run.name}` continues from there"


@pytest.mark.parametrize(
    ("error", "safe", "says"),
    [
        (OSError(errno.ENOSPC, "full"), "the weights are safe", "the disk is full: .*; the weights are safe"),
        (OSError(errno.EDQUOT, "full"), "the weights are safe", "the disk is full: .*; the weights are safe"),
        (ResourceError("no room", "x"), "the weights are safe", "no room; the weights are safe"),
        (OSError(errno.ENOSPC, "full"), "", "full"),
        (OSError(errno.EACCES, "denied"), "the weights are safe", "denied"),
    ],
)
def test_a_full_disk_says_what_is_safe(error: Exception, safe: str, says: str, home: Path, tmp_path: Path) -> None:
    def stage(c: Any) -> None:
        raise error

    c = context(events=Events(), folder=SimpleNamespace(name="r", path=tmp_path), resources=ExitStack(), safe=safe)
    with pytest.raises((OSError, ResourceError), match=says) as caught:
        follow(job_of_stages(stage), c)
    assert isinstance(caught.value, ResourceError) == bool(safe and "denied" not in says)


def test_memory_that_runs_out_is_said_and_kept_in_the_events(home: Path, tmp_path: Path) -> None:
    def stage(c: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 5000000 bytes.")

    heard: list[dict[str, Any]] = []
    run = Run(tmp_path)
    c = context(events=heard_by(heard), folder=run, resources=ExitStack())
    with pytest.raises(ResourceError, match="could not get 5 MB.*--micro-tokens"):
        follow(job_of_stages(stage), c)
    assert [event["missing"] for event in heard if event["kind"] == "out_of_memory"] == [5_000_000]
    assert heard[-1]["kind"] == "failed" and "could not get 5 MB" in heard[-1]["what"]
    assert "--micro-tokens" in heard[-1]["fix"]

    def wrong(c: Any) -> None:
        raise RuntimeError("a mistake of ours") from KeyError("its cause")

    with pytest.raises(RuntimeError, match="a mistake of ours") as caught:
        follow(job_of_stages(wrong), c)
    assert isinstance(caught.value.__cause__, KeyError)


def test_what_a_killed_process_left_is_swept(home: Path) -> None:
    run = run_named(home)
    left = [run.path / ".x.part", run.path / ".work-1", run.out / ".y.part", run.out / ".hf-1", run.out / ".unproven-1"]
    for number, path in enumerate(left):
        path.mkdir() if number % 2 else path.write_text("x")
    kept = [run.path / "plan.json", run.out / "r.gguf", run.path / ".lock"]
    for path in kept:
        path.write_text("x")
    run.checkpoints.rmdir()
    sweep(run)
    sweep(run)  # there is nothing left, and its folders are there
    assert not any(path.exists() for path in left) and all(path.exists() for path in kept) and run.checkpoints.is_dir()


def test_jobs_are_found_by_their_name(home: Path) -> None:
    assert find_job("train").name == "train"
    for name in ("job", "no such", "nothing"):
        with pytest.raises(RunError, match="makes no run that can be resumed"):
            find_job(name)
    assert job_of(run_named(home, command="tune_encoder")).name == "tune_encoder"
    with pytest.raises(RunError, match="makes no run that can be resumed"):
        job_of(run_named(home, "s", command="settings"))


def test_a_lost_recipe_is_read_from_the_plan(home: Path) -> None:
    run, job = run_named(home), find_job("train")
    assert job is not None
    recipe, asked = run.path / "recipe.toml", {"inputs": ["x"], "steps": 7, "unknown": 1}
    assert asked_settings(job, run, {"asked": asked}).value.steps == 7  # type: ignore[attr-defined]
    recipe.write_text("= nothing")
    assert asked_settings(job, run, {"asked": asked}).origin["steps"] == "plan.json"
    recipe.write_text("inputs = ['y']\nsteps = 9\n")
    assert asked_settings(job, run, {"asked": asked}).value.steps == 9  # type: ignore[attr-defined]
    recipe.unlink()
    with pytest.raises(RunError, match="r has neither plan.json nor recipe.toml"):
        asked_settings(job, run, None)
    with pytest.raises(RunError, match="plan.json of r was changed"):
        asked_settings(job, run, {"asked": {"inputs": ["x"], "steps": "many"}})


class _Corpus:
    """Rows that are read, by the side that is asked for."""

    kind, fingerprint, ledger = "chat", "f", {"rows": {"system_prompt": "Be kind."}}

    def __init__(self) -> None:
        self.sides: list[str] = []

    def examples(self, side: str = "held_out") -> list[str]:
        self.sides.append(side)
        return [f"{side} rows"]


def test_a_tuned_model_is_compared_on_rows_that_judge(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, with what the person asked for, and how often these rows were looked at before."""
    asked: dict[str, Any] = {}

    @contextmanager
    def opened(*models: Any) -> Iterator[Any]:
        yield models if len(models) == 2 else models[0]

    def compared(ours: Any, theirs: Any, examples: Any, events: Any, options: Any, readers: Any, judged: Any) -> Any:
        asked.update(models=(ours, theirs), examples=examples, options=options, judged=judged)
        return FakeComparison()

    @dataclass(frozen=True)
    class FakeComparison:
        shortened: bool = True
        judged_before: int = 0

        def to_json(self) -> dict[str, int]:
            return {"before": self.judged_before}

        def card_lines(self) -> list[str]:
            return ["a line"]

        def keep(self, folder: Path, base: str, tuned: str) -> Path:
            asked.update(kept=(base, tuned))
            return folder / "verdict.json"

    class Tuned(str):
        source = "t"

    for name, fake in {
        "resolve": lambda name: Tuned(f"tuned {name}"),
        "as_gguf": lambda base, folder, tokenizer: opened("base"),
        "both_in_llamacpp": lambda base, tuned: opened(base, tuned),
        "readers": lambda base, tuned: None,
        "compare_models": compared,
        "report": lambda comparison, events, run: None,
        "transformers_name": lambda source: "org/base",
    }.items():
        monkeypatch.setattr(tune, name, fake)
    for name, fingerprint, known in (("a", "f", {"x": 1}), ("b", "f", None), ("c", "g", {"x": 1}), ("me", "f", {})):
        run = run_named(home, name, "tune")
        write_json(run.path / "plan.json", {"corpus": fingerprint})
        write_json(run.path / "result.json", {"comparison": known})
    corpus = _Corpus()
    plan = SimpleNamespace(
        loop=SimpleNamespace(seconds=100.0, threads=2, waiting=1.0, seconds_comparing=9.0),
        tuning=SimpleNamespace(base_name="base", base_sha256="5"),
    )
    c = context(
        tune.TuneContext,
        TuneSettings(model="m", inputs=["x"], compare_rows=7, score="exact"),
        plan=plan,
        events=Events(),
    )
    c.corpus, c.folder, c.estimates, c.phases = corpus, run, {"compare": 5.0}, {"compare": 30.0}
    c.base, c.live = SimpleNamespace(source="s"), SimpleNamespace(plan=plan, tokenizer=object())
    monkeypatch.setattr(tune.TuneContext, "tokenizer", "tokenizer")
    c.outcome = SimpleNamespace(state=SimpleNamespace(stop="settled", best_step=3))
    tune.compare(c)
    assert corpus.sides == ["held_out"] and asked["examples"] == ["held_out rows"]
    assert asked["models"] == ("base", f"tuned run:{run.path.name}") and asked["judged"] is None
    assert (asked["options"].score, asked["options"].limit) == ("exact", 7)
    assert c.comparison == {"before": 1}, "one other run was compared on these rows"
    assert asked["kept"] == ("s", "t") and c.files["verdict"] == str(run.out / "verdict.json")
    made = c.made().to_json()
    assert made["system_prompt"] == "Be kind." and made["base"]["transformers"] == "org/base"
    assert "compare" not in c.estimates, "a shortened comparison says nothing of a whole one's time"
    c.settings = c.settings.model_copy(update={"compare": False})
    tune.compare(c)
    assert len(corpus.sides) == 1


@pytest.mark.parametrize(
    ("number", "compares", "resumes", "said"),
    [(20, True, False, "say"), (4, True, False, "warn"), (20, False, False, ""), (20, True, True, "")],
)
def test_what_the_rows_can_show_is_said_before_the_run(number: int, compares: bool, resumes: bool, said: str) -> None:
    turns = [("user", "assistant") for _ in range(number)]
    rows = [
        Example("chat", [{"role": u, "content": f"{chr(97 + n) * 40} {n}"}, {"role": a, "content": f"yes {n}"}])
        for n, (u, a) in enumerate(turns)
    ]
    heard: list[dict[str, Any]] = []
    c = context(
        tune.TuneContext,
        TuneSettings(model="m", inputs=["x"], compare=compares),
        events=Events(listeners=[into(heard)]),
    )
    c.corpus, c.judgement = SimpleNamespace(kind="chat", examples=lambda: rows), None
    c.record = {} if resumes else None
    tune.judging(c)
    assert [event["kind"] for event in heard] == ([said] if said else [])
    if said:
        assert c.judgement.measure == "exact match" and c.judgement.sentence == heard[0]["text"]
        assert (c.judgement.visible is None) == (number == 4) and c.judgement.families == number


def test_a_run_that_is_stopped_before_there_is_a_plan_says_that_nothing_was_kept(home: Path) -> None:
    def stopped(c: Any) -> None:
        raise KeyboardInterrupt

    heard: list[Any] = []
    made = job.RunJob("train", (stopped,), TrainSettings, job.RunContext)
    with pytest.raises(KeyboardInterrupt):
        job.start(made, TrainSettings.model_validate({"inputs": ["x"]}), Events(listeners=[heard.append]))
    assert heard[-1].text == NOTHING_KEPT and not Run.all()


@pytest.mark.parametrize(("soon", "dry", "kept"), [(10.0, False, False), (-1.0, False, True), (-1.0, True, False)])
def test_a_run_that_fails_late_before_its_plan_is_kept_with_its_error(
    home: Path, monkeypatch: pytest.MonkeyPatch, soon: float, dry: bool, kept: bool
) -> None:
    def fails(c: Any) -> None:
        raise DataError("no text", "choose another file")

    monkeypatch.setattr(job, "FAILS_SOON_SECONDS", soon)
    made, events = job.RunJob("train", (fails,), TrainSettings, job.RunContext), Events()
    with pytest.raises(DataError):
        job.start(made, TrainSettings.model_validate({"inputs": ["x"], "dry": dry}), events)
    events.close()
    assert [run.failure and run.failure.what for run in Run.all()] == (["no text"] if kept else [])
