"""Which way a job takes: what is refused before anything is read, what a dry run leaves out, what is tried next."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from settle import api
from settle.base.errors import RunError, UsageError
from settle.base.files import write_json
from settle.base.run import Run
from settle.jobs import distill, index, proof_stages, run_reports, training_stages, tuning_stages
from settle.jobs import tune_encoder as encoder
from settle.jobs.distill import DistillContext
from settle.jobs.settings import DistillSettings, IndexSettings
from settle.model.encoder import Encoder, EncoderOptions
from settle.train.proof.compute_type import RoundingError
from tests.jobs.test_stages import context, heard_by


@pytest.fixture
def indexed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `index` calls for a collection called docs."""
    done: list[Any] = []

    def note(what: str, result: Any = None) -> Any:
        return lambda *given: (done.append((what, *given[:1])), result)[1]

    for name in ("delete", "resolve_gguf", "tell_report", "check_collection", "watch", "_delete_if_empty"):
        monkeypatch.setattr(index, name, note(name))
    monkeypatch.setattr(index, "list_collections", note("list"))
    monkeypatch.setattr(index, "collection_names", lambda: ["docs"])
    monkeypatch.setattr(index, "bring_up_to_date", note("update", SimpleNamespace(failed=[])))

    def run(heard: list[Any] | None = None, **asked: Any) -> tuple[str | None, list[Any]]:
        done.clear()
        return index.index(IndexSettings.model_validate(asked), heard_by([] if heard is None else heard)), list(done)

    return run


def test_an_index_is_listed_updated_checked_watched_or_deleted(indexed: Any, tmp_path: Path) -> None:
    updated = [("update", "docs"), ("tell_report", "docs")]
    name, listed = indexed()
    assert name is None and [what for what, *_ in listed] == ["list"]
    assert indexed(name="docs") == ("docs", updated)
    assert indexed(name="docs", check=True) == ("docs", [*updated, ("check_collection", "docs")])
    assert indexed(name="docs", watch=True) == ("docs", [*updated, ("watch", "docs")])
    heard: list[Any] = []
    assert indexed(heard, name="docs", delete=True) == (None, [("delete", "docs")])
    assert heard[-1]["result"] == {"deleted": "docs"}
    assert indexed(name="docs", check=True, model="smol")[1][0] == ("resolve_gguf", "smol")
    with pytest.raises(UsageError, match="only matter to a check"):
        indexed(name="docs", model="smol")
    with pytest.raises(UsageError, match="no collection is named"):
        indexed(watch=True)


def test_a_stopped_index_says_what_is_kept(indexed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    left: list[str] = []

    def stopped(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(index, "bring_up_to_date", stopped)
    monkeypatch.setattr(index, "_delete_if_empty", left.append)
    heard: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        indexed(heard, name="docs")
    assert heard[-1]["text"].startswith("stopped; what was indexed is kept") and left == []
    with pytest.raises(KeyboardInterrupt):
        indexed(name="new", paths=[str(tmp_path)])
    assert left == ["new"]  # a new one that nothing came into is removed


def teaching(monkeypatch: pytest.MonkeyPatch, student: str | None, sha: str, adapter: str = "full") -> Any:
    made = {"big": "a", "small": sha}
    checked: list[Any] = []

    def opened(name: str, events: Any = None) -> Any:
        return SimpleNamespace(name=name, tokenizer=f"of {name}", source=SimpleNamespace(sha256=made[name]))

    monkeypatch.setattr(distill, "open_pretrained", opened)
    monkeypatch.setattr(distill, "require_same_tokenizer", lambda *given: checked.append(given))
    asked = {"inputs": ["x"], "teacher": "big", "student": student, "adapter": adapter}
    c = context(DistillContext, DistillSettings.model_validate({k: v for k, v in asked.items() if v}))
    c.events = heard_by([])
    distill.teacher(c)
    assert c.teacher.name == "big"
    return checked


def test_a_student_reads_as_its_teacher_and_is_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert teaching(monkeypatch, "small", "b") == [("of big", "of small", ("big", "small"))]
    assert teaching(monkeypatch, "small", "a", "lora") and teaching(monkeypatch, None, "a") == []
    with pytest.raises(UsageError, match="small is its own teacher"):
        teaching(monkeypatch, "small", "a")


def test_a_dry_forecast_begins_nothing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    expected = SimpleNamespace(to_json=lambda: {"loss": 1})
    monkeypatch.setattr(tuning_stages, "_look_ahead", lambda c: setattr(c, "expected", expected))
    monkeypatch.setattr(tuning_stages, "end_dry", lambda c, result: done.append(result["forecast"]))

    def forecast(record: Any, dry: bool) -> None:
        settings = SimpleNamespace(dry=dry, watts=None)
        c = context(tuning_stages.TuningContext, settings, record=record, folder=Run(tmp_path))
        c.plan.to_json, c.spending.start = dict, lambda device, watts: done.append("counted")
        c.events = SimpleNamespace(emit=lambda event: done.append(event.forecast))
        c.corpus, c.judgement = SimpleNamespace(previews=[]), None
        tuning_stages.forecast(c)

    forecast(None, dry=True)
    assert done == [{"loss": 1}] and not (tmp_path / "forecast.json").exists()
    forecast(None, dry=False)
    assert done[1:] == ["counted"] and json.loads((tmp_path / "forecast.json").read_text()) == {"loss": 1}
    forecast({}, dry=False)
    assert done[2:] == ["counted", {"loss": 1}], "that of the earlier session is shown again"


@pytest.mark.parametrize(
    ("free", "average", "says"),
    [
        (39_900_000, 0.1, ["39.9 MB are free in FOLDER, and checkpoints take up to 40.0 MB"]),
        (40_000_000, 0.1, []),
        (31_900_000, 0.0, ["31.9 MB are free in FOLDER, and checkpoints take up to 32.0 MB"]),
        (32_000_000, 0.0, []),
    ],
)
def test_a_disk_without_room_for_two_checkpoints_is_said_before_the_first_step(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, average: float, says: list[str]
) -> None:
    """A million numbers, each with its two moments, its best value and its average where there is one, twice."""
    said: list[str] = []
    monkeypatch.setattr(training_stages, "disk_free", lambda folder: free)
    c = context(training_stages.TrainingContext, None, folder=Run(tmp_path))
    c.plan = SimpleNamespace(optimizer_name="adamw", optimizer={}, loop=SimpleNamespace(average=average))
    c.live = SimpleNamespace(model=SimpleNamespace(trainable=lambda: {"weight": torch.zeros(1_000_000)}))
    c.events = SimpleNamespace(
        emit=lambda event: said.append(event.text.split(":")[0].replace(str(tmp_path), "FOLDER"))
    )
    training_stages.warn_of_room(c)
    assert said == says


def test_a_rounding_that_is_refused_is_tried_more_exactly(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    left = [2]

    def checks(c: Any) -> list[Any]:
        if left[0]:
            left[0] -= 1
            raise RoundingError("x")
        return [{"check": "gradient"}]

    def way(name: str, helps: bool) -> Any:
        return lambda c, error, again: (tried.append(name), helps)[1]

    monkeypatch.setattr(proof_stages, "_checks", checks)
    monkeypatch.setattr(proof_stages, "_all_scores_in_float32", way("scores", True))
    monkeypatch.setattr(proof_stages, "_all_in_float32", way("all", True))
    monkeypatch.setattr(proof_stages, "describe", lambda: "here")
    run = Run.create("train", "r")
    c = context(folder=run, corpus=SimpleNamespace(fingerprint="f00"))
    c.plan.to_json = lambda: {"dtype": "float32"}
    stage = proof_stages.proof(lambda *given: None)
    stage(c)
    plan = run.read("plan.json")
    assert tried == ["scores", "all"] and plan is not None and plan["proof"] == [{"check": "gradient"}]
    assert (plan["dtype"], plan["corpus"], plan["machine"]) == ("float32", "f00", "here") and "torch" in plan[
        "versions"
    ]
    stage(c)  # resumed: it was proven
    assert tried == ["scores", "all"]
    monkeypatch.setattr(proof_stages, "_all_scores_in_float32", way("scores", False))
    left[0], c.record = 9, None
    with pytest.raises(RoundingError):
        stage(c)
    assert tried[2:] == ["scores", "all"]


def test_a_broken_encoder_is_not_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    c: Any = SimpleNamespace(is_usable=False, settings=SimpleNamespace(compare=True))
    encoder.export(c)
    encoder.compare(c)
    assert set(vars(c)) == {"is_usable", "settings"}
    made: list[Any] = []
    monkeypatch.setattr(encoder, "export_encoder", lambda *given: ({"gguf": "g"}, {"passed": True}))
    monkeypatch.setattr(encoder, "record_made", lambda run, files: made.append(files))
    c = SimpleNamespace(
        is_usable=True, add_files=made.append, model=Encoder(EncoderOptions(8, 4, 8, 8, 1, 1)), source=None, hf=None,
        file=None, run=None, held_out=lambda side: SimpleNamespace(batches=[side, 2]),
    )  # fmt: skip
    encoder.export(c)
    assert made == [{"gguf": "g"}] * 2 and c.gate["passed"]


def test_a_finished_run_says_its_verdict(home: Path) -> None:
    run = Run.create("train", "r")
    with pytest.raises(RunError, match="r is not finished"):
        api.FinishedRun.find("r")
    figures = {"name": "r", "verdict": "settled", "why": "x"}
    write_json(run.path / "result.json", figures)
    assert repr(api.FinishedRun.find("r")) == "<FinishedRun r: settled>"
    write_json(run.path / "result.json", figures | {"best": {"loss": 1.0, "bits_per_byte": 1.5}})
    assert repr(api.FinishedRun.find("r")) == "<FinishedRun r: settled, 1.5000 bits per byte>"


def test_a_summary_takes_the_result_or_else_the_course(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create("train", "r")
    step, latest = SimpleNamespace(step=7, tokens=70), SimpleNamespace(loss=3.0, bits_per_byte=2.0, tokens=60)
    course = SimpleNamespace(evals=[latest], step=step, failure=None, started=5.0, now=9.0)
    monkeypatch.setattr(run_reports.RunCourse, "latest", lambda path: course)
    found = run_reports.RunSummary.of(run)
    assert (found.step, found.tokens, found.loss, found.bits_per_byte, found.seconds) == (7, 70, 3.0, 2.0, 4.0)
    course.step = None
    assert (run_reports.RunSummary.of(run).step, run_reports.RunSummary.of(run).tokens) == (None, 60)
    course.evals = []
    none = run_reports.RunSummary.of(run)
    assert (none.tokens, none.loss, none.verdict) == (None, None, None)
    write_json(run.path / "result.json", {"verdict": "settled", "best": {"loss": 1.0}, "actual": {"time": 8}})
    course.evals = [latest]
    best = run_reports.RunSummary.of(run)
    assert (best.loss, best.bits_per_byte, best.seconds, best.verdict) == (1.0, 2.0, 8, "settled")
