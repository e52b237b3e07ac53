"""`settle tune --objective decision` with a tiny model that is really tuned: learned, calibrated, resumed, refused."""

import csv
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from settle.api import FinishedRun
from settle.base.errors import DataError, UsageError
from settle.base.event_log import Events
from settle.base.run import Run
from settle.base.settings import resolve
from settle.base.statistics import Interval, PairedTest
from settle.cli import main
from settle.data.batches import RowBatches
from settle.data.decisions.calibration import fit_temperature
from settle.data.decisions.corpus import open_decisions, prepare_decisions
from settle.data.settings import RowSettings
from settle.evaluate.compare.verdict_file import VerdictFile
from settle.evaluate.decisions import ORDERS
from settle.evaluate.gate.export import export_by_name
from settle.formats.gguf import Gguf, export_gguf, read_gguf
from settle.formats.gguf.decision import read_decision
from settle.infer.decider import Decider
from settle.jobs.job import find_job, resume, start
from settle.jobs.settings import TuneSettings
from settle.jobs.tune_decision import MAJORITY, SIMPLE, ZERO, DecisionContext, _comparison, _order_changes
from settle.train.objectives.decision import label_scale
from tests.trained import Trained, trained

WORDS = {"returns": "self.x return", "loops": "for i in x", "raises": "raise Error"}


@pytest.fixture(scope="session")
def tiny() -> Trained:
    return trained()


@pytest.fixture(scope="module")
def files(tiny: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decision")
    export_gguf(tiny.part, tiny.weights, tiny.tokenizer, folder / "base.gguf", "f32", {})
    dice = random.Random(0)
    rows = [
        {"id": i, "text": f"{dice.choice('abcdef')}{i} {words} {dice.randrange(99)}", "label": label}
        for i in range(40)
        for label, words in WORDS.items()
    ]
    write(folder / "rows.csv", rows)
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def tune(files: Path, table: Path | None = None, on_event: Any = None, **more: Any) -> tuple[int, list[Any]]:
    asked = {
        "model": str(files / "base.gguf"), "inputs": [str(table or files / "rows.csv")], "objective": "decision",
        "name": "d", "threads": 1, "dtype": "float32", "epochs": 2, "optimizer": {"lr": 0.01}, "batch_rows": 8, **more,
    }  # fmt: skip
    said: list[Any] = []
    events = Events(listeners=[said.append, *([on_event] if on_event else [])])
    try:
        context = start(find_job("tune_decision"), resolve(TuneSettings, [("asked", asked)]).value, events)
        return context.exit_code or 0, said
    finally:
        events.close()


@pytest.fixture(scope="module")
def finished(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int, list[Any]]]:
    """The home of a finished run `d`, its exit code and its events."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SETTLE_HOME", str(tmp_path_factory.mktemp("finished")))
        code, said = tune(files)
        yield Path(os.environ["SETTLE_HOME"]), code, said


def texts(said: list[Any]) -> str:
    return "\n".join(event.text for event in said if hasattr(event, "text"))


def test_it_learns_to_decide_and_says_how_sure_it_may_be(
    finished: tuple[Path, int, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, code, said = finished
    monkeypatch.setenv("SETTLE_HOME", str(home))
    result = Run.find("d").read("result.json") or {}
    assert code == 0, texts(said)
    tests = result["comparison"]["tests"]
    assert set(tests) == {ZERO, MAJORITY, SIMPLE} and tests["zero-shot"]["tuned"] > 0.8
    assert result["decision"]["baselines"]["majority class"]["accuracy"] == pytest.approx(1 / 3, abs=0.05)
    assert len(result["proof"]) == 9 and result["gate"]["passed"]
    assert result["gate"]["checked"]["largest_difference"] < 0.01
    made = json.loads(Path(result["files"]["decision"]).read_text())
    assert made["type"] == "nimble" and list(made["labels"]) == ["A", "B", "C"]
    assert made["questions"]["label"]["criteria"] == dict.fromkeys(sorted(WORDS))
    assert 0.02 < made["temperatures"]["choice"] < 50 and "{{ o.label }}" in made["template"]
    corpus = open_decisions(home / "tokens" / (Run.find("d").read("plan.json") or {})["corpus"])
    sides = [corpus.rows(side) for side in ("held_out", "selection")]
    judged, asked = len(sides[0]), [row for rows in sides for row in rows]
    assert len(made["confidences"]) == len(made["correct"]) == len(made["families"]) == len(asked)
    assert judged == made["report"]["rows"]
    assert np.mean(made["correct"][:judged]) == pytest.approx(tests["zero-shot"]["tuned"])
    assert 0 <= made["order_changes"]["value"] <= 1
    assert made["columns"] == ["text"] and made["questions"].keys() == {"label"}
    with Decider(result["files"]["gguf"], slots=1) as decider:
        answers = [decider.decide(row.state, [row.question])[0] for row in asked]
    assert [answer.best == row.best for answer, row in zip(answers, asked, strict=True)] == made["correct"]
    assert [answer.highest for answer in answers] == pytest.approx(made["confidences"], abs=0.01)
    assert FinishedRun.find("d").decide(asked[0].state)["label"].probabilities == answers[0].probabilities
    shown = texts(said)
    assert "rows judge the result: a difference of" in shown and "majority class" in shown
    assert result["proof"][1]["detail"].endswith("guessing is ln(3 labels) = 1.099")
    assert '`settle decide d "some text"`' in shown
    assert "--refuse-above-risk 5%: takes 50 rows that trained nothing, there are" in shown
    assert "asked in another order of the options" in shown


def test_its_verdict_follows_from_the_rows_of_its_baselines_too(
    finished: tuple[Path, int, list[Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SETTLE_HOME", str(finished[0]))
    result = Run.find("d").read("result.json") or {}
    path, comparison = Path(result["files"]["verdict"]), result["comparison"]
    text, kept = path.read_text(), VerdictFile.read(path)
    assert (kept.verdict, kept.headline) == (comparison["verdict"], comparison["headline"]) and kept.rows.baselines
    means = [np.mean(side) for side in (kept.rows.base, *kept.rows.baselines)]
    assert means == pytest.approx([comparison["tests"][name]["base"] for name in (ZERO, MAJORITY, SIMPLE)])
    assert main(["eval", "d", "--verify"]) == (0 if kept.passes else 3)
    assert "verdict.json holds" in capsys.readouterr().err
    values = json.loads(text)
    values["rows"]["baselines"][0] = values["rows"]["tuned"]  # one class for all is right as often
    path.write_text(json.dumps(values))
    try:
        assert main(["eval", "d", "--verify"]) == 1 and "rows do not give its verdict" in capsys.readouterr().err
    finally:
        path.write_text(text)


def test_it_is_exported_whole_with_its_keys(
    finished: tuple[Path, int, list[Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SETTLE_HOME", str(finished[0]))
    events, own = Events(), read_decision(read_gguf(Run.find("d").out / "d.gguf").metadata)
    for dtype, bar in (("f32", 0.01), ("q8_0", 1.0)):
        path, figures = export_by_name("d", Gguf(dtype=dtype), tmp_path / f"{dtype}.gguf", None, 0.02, events)
        assert read_decision(read_gguf(path).metadata) == own
        assert figures and figures["checked"]["largest_difference"] <= figures["checked"]["bar"] == bar
    events.close()


@pytest.mark.slow
def test_it_resumes_to_the_same_weights(
    files: Path, finished: tuple[Path, int, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SETTLE_HOME", str(finished[0]))

    def stop(event: Any) -> None:
        if event.kind == "step" and event.step == 6 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt

    stopped: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        tune(files, name="halves", on_event=stop, compare=False)
    events = Events()
    assert resume("halves", events) in (0, 3)
    events.close()
    whole, halves = (Run.find(name).read("result.json") or {} for name in ("d", "halves"))
    assert whole["best"]["loss"] == halves["best"]["loss"]
    assert whole["decision"]["report"] == halves["decision"]["report"]


def compared(base: float, tuned: float, verdict: str) -> PairedTest:
    sign = {"better": 1, "worse": -1}.get(verdict, 0)
    ends = {1: (0.05, 0.3), -1: (-0.3, -0.05), 0: (-0.04, 0.04)}[sign]
    p = 0.001 if sign else 0.4
    test = PairedTest(base, tuned, Interval(tuned - base, *ends), p, 60, 20, 5, 60, p)
    assert test.verdict == verdict
    return test


@pytest.mark.parametrize(
    ("zero", "majority", "words", "verdict", "note"),
    [
        ("better", "better", "better", "better", ""),
        ("better", "no different", "better", "no different", ""),
        ("no different", "better", "better", "no different", ""),
        ("better", "worse", "better", "worse", ""),
        ("better", "better", "no different", "better", "not shown to be better, so that may be enough"),
        ("better", "better", "worse", "worse", "reaches 59%, more than this model: it is enough"),
    ],
)
def test_better_takes_a_model_that_beats_both_baselines_and_no_simple_classifier_that_beats_it(
    zero: str, majority: str, words: str, verdict: str, note: str
) -> None:
    tests = {
        ZERO: compared(0.2, 0.5, zero),
        MAJORITY: compared(0.3, 0.5, majority),
        SIMPLE: compared(0.588, 0.5, words),
    }
    comparison = _comparison(tests, "under-confident: says 43 %")
    assert comparison["verdict"] == verdict and str(comparison["headline"]).startswith(f"{verdict}: right on 50.0%")
    assert "naive Bayes on the words 58.8%" in str(comparison["headline"])
    assert comparison["notes"][-1] == "under-confident: says 43 %" and len(comparison["notes"]) == 1 + bool(note)
    assert note in comparison["notes"][0]


def test_a_short_context_is_exported_and_rows_that_judge_fit_no_temperature(
    tiny: Trained, files: Path, home: Path, tmp_path: Path
) -> None:
    """llama.cpp refuses what the context does not hold, so the gate asks nothing longer; it is said before the first
    step. A third of the labels that judge is wrong: a temperature fitted on them would be far higher."""
    part = tiny.part.model_copy(update={"max_position_embeddings": 128})
    export_gguf(part, tiny.weights, tiny.tokenizer, tmp_path / "short.gguf", "f32", {})
    labels = sorted(WORDS)
    judging = [
        {"id": i, "text": f"{'xyz'[i % 3]}{i} {WORDS[labels[i % 3]]} {7 * i}", "label": labels[(i + (i % 9 < 3)) % 3]}
        for i in range(100, 145)
    ]
    write(tmp_path / "judging.csv", judging)
    code, said = tune(
        files, model=str(tmp_path / "short.gguf"), rows={"held_out_from": str(tmp_path / "judging.csv")}, epochs=1
    )
    assert "short reads 128 tokens, of which 'label' with its options takes" in texts(said)
    result = Run.find("d").read("result.json") or {}
    assert code in (0, 3) and result["gate"]["passed"] and result["gate"]["checked"]["rows"] > 20
    made = json.loads(Path(result["files"]["decision"]).read_text())
    corpus = open_decisions(home / "tokens" / (Run.find("d").read("plan.json") or {})["corpus"])
    fitting = corpus.rows("selection")
    rows = fitting + corpus.rows("held_out")
    with Decider(result["files"]["gguf"], slots=1) as decider:
        shares = np.array([decider.decide(row.state, [row.question])[0].probabilities for row in rows])
    heat, scale = made["temperatures"]["choice"], label_scale(tiny.model, list(made["labels"].values()))
    scores, targets = heat / scale * np.log(np.maximum(shares, 1e-9)), np.array([row.target for row in rows])
    n = len(fitting)
    assert heat == pytest.approx(scale * fit_temperature(scores[:n], targets[:n]), rel=0.1)
    assert scale * fit_temperature(scores[n:], targets[n:]) > 1.3 * heat
    part = tiny.part.model_copy(update={"max_position_embeddings": 64})
    export_gguf(part, tiny.weights, tiny.tokenizer, tmp_path / "none.gguf", "f32", {})
    with pytest.raises(DataError, match=r"longer than 64 tokens"):
        tune(files, model=str(tmp_path / "none.gguf"), name="e")


def test_other_orders_of_the_options_take_a_twentieth_of_a_time_budget_at_most() -> None:
    """They took more than everything else that is judged, which `--time 6m` planned as overhead and did not cut."""
    spaces = {"held_out": 60, "selection": 60}
    corpus = SimpleNamespace(**{name: SimpleNamespace(num_inputs=100 * n, num_rows=n) for name, n in spaces.items()})
    estimates = [
        DecisionContext.comparison_estimate(
            SimpleNamespace(corpus=corpus, budget=budget, settings=SimpleNamespace(compare=compare)),  # type: ignore[arg-type]
            0.01,
        )
        for budget, compare in ((None, True), (360.0, True), (None, False))
    ]
    assert estimates == pytest.approx([120 + 0.01 * 6_000 * (ORDERS + 1), 120 + 18, 120])
    said: list[str] = []
    context = SimpleNamespace(
        seconds_to_compare=40.0, budget=100.0, phases={"export": 20.0}, leave_out_pace=lambda: said.append("no pace"),
        settings=SimpleNamespace(compare=True),
        events=SimpleNamespace(emit=lambda event: said.append(event.text)),
    )  # fmt: skip
    assert _order_changes(context, [], per_row=0.2) is None  # type: ignore[arg-type]
    assert said == ["no pace", "there is no time to ask in another order of the options"]
    context.settings.compare = False
    assert _order_changes(context, [], per_row=0.2) is None and len(said) == 2  # type: ignore[arg-type]


def bad(rows: list[dict[str, Any]], tmp_path: Path) -> Path:
    write(tmp_path / "bad.csv", rows)
    return tmp_path / "bad.csv"


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([{"text": f"t {i}", "label": "one"} for i in range(40)], "only 'one'"),
        ([{"text": f"t {i}", "label": i % 2} for i in range(12)], "12 labelled rows are too few"),
        ([{"text": f"t {i}", "label": f"class {i % 300}"} for i in range(600)], "300 different values"),
        ([{"text": f"t {i}", "label": f"class {i % 200}"} for i in range(400)], "200 options need as many labels"),
        ([{"text": f"t {i} " * 400, "label": i % 2} for i in range(40)], "longer than"),
    ],
)
def test_rows_that_nothing_can_be_learned_from_are_refused(
    files: Path, home: Path, tmp_path: Path, rows: list[dict[str, Any]], what: str
) -> None:
    with pytest.raises(DataError, match=what):
        tune(files, bad(rows, tmp_path))
    assert not (home / "runs").exists() or not list((home / "runs").iterdir())


def test_rare_classes_and_contradictions_are_said_before_anything_runs(files: Path, home: Path, tmp_path: Path) -> None:
    rows = [{"text": f"t {i} {i * 7}", "label": "ab"[i % 2]} for i in range(60)]
    rows += [{"text": "t 1 7", "label": "a"}, {"text": "x y z", "label": "c"}, {"text": "p q r", "label": "c"}]
    code, said = tune(files, bad(rows, tmp_path), dry=True)
    shown = texts(said)
    assert "1 of 3 classes of 'label' have fewer than 5 rows (c)" in shown
    assert "1 texts have different answers" in shown


def test_settings_of_models_that_write_are_refused(files: Path, home: Path) -> None:
    with pytest.raises(UsageError, match="--sample"):
        tune(files, sample="a")


def test_options_change_places_each_epoch_and_texts_stay_on_one_side(tiny: Trained, files: Path, home: Path) -> None:
    corpus, again, fixed = (
        prepare_decisions([str(files / "rows.csv")], tiny.tokenizer, RowSettings(), shuffle=shuffle)
        for shuffle in (True, True, None)
    )
    assert again.fingerprint == corpus.fingerprint != fixed.fingerprint
    assert (corpus.train.variants > 3, fixed.train.variants) == (True, 1), "options that never change keep their place"
    sizes = [store.num_rows for store in (corpus.train, corpus.selection, corpus.held_out)]
    assert sum(sizes) == 120 and sizes[2] == pytest.approx(24, abs=4) and min(sizes) >= 8
    states = [{row.state for row in corpus.rows(side)} for side in ("train", "selection", "held_out")]
    assert len(set.union(*states)) == sum(map(len, states))
    keys = [row.question.options[row.best].key for row in corpus.rows("held_out")]
    assert min(keys.count(key) for key in WORDS) >= 5, "classes are spread over the sides"
    batches = RowBatches(corpus.train, corpus.train.num_rows, seed=0)
    first, second, third = (batches.at(epoch) for epoch in range(3))
    labels = {batch.targets[batch.cu_seqlens[1:] - 1].tobytes() for batch in (first, second, third)}
    assert len(labels) == 3, "another label is right in every epoch"
    right = np.sort(first.targets[first.cu_seqlens[1:] - 1])
    assert np.unique(right, return_counts=True)[1].min() > corpus.train.num_rows / 5, (
        "each label is right equally often"
    )
    assert (first.shares >= 0).all() and np.allclose(first.shares.sum(1), 1)
    assert ((first.targets >= 0).sum(), len(first.cu_seqlens) - 1) == (corpus.train.num_rows,) * 2


def test_targets_that_are_shares_reach_the_batch(tiny: Trained, home: Path, tmp_path: Path) -> None:
    question = {"type": "score", "instructions": "How long?", "criteria": ["short", "middling", "long"]}
    rows = [
        {"state": f"{'x' * (i % 9)} {i}", "questions": {"q": question}, "targets": {"q": {"0": 1, "2": i % 9 + 1}}}
        for i in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = prepare_decisions([str(tmp_path / "rows.jsonl")], tiny.tokenizer, RowSettings())
    shares = RowBatches(corpus.train, 4, seed=0).at(0).shares
    assert shares is not None and (shares[:, 1] == 0).all() and (shares[:, 0] > 0).all() and (shares < 1).all()
