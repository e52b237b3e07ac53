"""What jobs report: a ledger of forecasts, and what an index took in and left out."""

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from settle.base.errors import DataError, UsageError
from settle.base.event_log import Events
from settle.base.run import Run
from settle.base.run.result import Evaluated, Result
from settle.base.statistics import Interval
from settle.jobs import index, run_reports
from settle.jobs import tune_decision as decision
from settle.jobs.settings import IndexSettings
from settle.plan.forecast_figures import LedgerEntry
from settle.retrieve.index.chunkers import Chunker
from settle.retrieve.index.update_index import UpdateReport
from tests.records import into


def heard_by(heard: list[Any]) -> Events:
    return Events(listeners=[into(heard)])


def test_a_ledger_says_expected_and_actual(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    ledger = [
        LedgerEntry("r", "time", Interval(100.0, 90.0, 110.0, 0.8), 120.0),
        LedgerEntry("r", "loss", Interval(2.0, 1.5, 2.5, 0.8), 2.2),
    ]  # fmt: skip
    monkeypatch.setattr(run_reports, "entries", lambda runs: ledger)
    run_reports.show_ledger([], heard_by(heard))
    assert heard[0]["rows"][0][:2] == ("r", "time") and heard[0]["rows"][0][4:] == ("+20%", "outside")
    assert heard[0]["rows"][0][2] == {"value": 100.0, "unit": "s"} and heard[0]["rows"][1][4:] == ("+10%", "inside")
    assert heard[1]["note"] == "error: actual ÷ expected − 1" and len(heard[1]["rows"]) == 2
    assert heard[2]["result"]["ledger"][0] == {
        "run": "r", "figure": "time", "expected": 100.0, "low": 90.0, "high": 110.0, "came": 120.0,
    }  # fmt: skip
    heard.clear()
    ledger.clear()
    run_reports.show_ledger([], heard_by(heard))
    assert heard[0]["note"] == "no finished run has a forecast yet" and len(heard) == 2


def test_a_run_shows_the_answers_that_its_comparison_changed(home: Path) -> None:
    run = Run.create("tune", "mine")
    change = {"number": 3, "gain": 1.0, "question": "q", "reference": "r", "base": "a", "tuned": "r"}
    compared = {"verdict": "better", "base": "smollm2", "tuned": "mine", "changed": [change]}
    run.finish(Result(name="mine", verdict="settled", comparison=compared))
    heard: list[dict[str, Any]] = []
    run_reports.show_run(["mine"], Events(listeners=[into(heard)]))
    (shown,) = [event for event in heard if event["kind"] == "changed"]
    assert shown["rows"] == [change] and (shown["base"], shown["run"]) == ("smollm2", "mine")


def test_seconds_of_a_run_are_those_of_its_result_or_of_its_events() -> None:
    course = SimpleNamespace(started=10.0, now=25.0)
    assert run_reports._seconds(cast(Any, SimpleNamespace(actual={"time": 7})), cast(Any, course)) == 7
    assert run_reports._seconds(cast(Any, SimpleNamespace(actual={"time": None})), cast(Any, course)) == 15.0
    assert run_reports._seconds(None, cast(Any, SimpleNamespace(started=None, now=25.0))) is None
    assert run_reports.day(None) == "" and run_reports.day(0.0)[:3] in ("197", "196")


def report(**more: Any) -> UpdateReport:
    empty = {field.name: 0 for field in dataclasses.fields(UpdateReport)} | {
        "failed": [],
        "kept": [],
        "left_out": {},
        "partly": [],
    }
    empty["left_out_paths"] = {}
    return UpdateReport(**(empty | more))


def test_what_was_indexed_in_a_line() -> None:
    assert index._summary(report(documents=1, passages=1)) == "nothing; 1 document, 1 passage"
    said = index._summary(report(added=1200, deleted=3, failed=[("a", "b")], documents=5000, passages=0))
    assert said == "1,200 added, 3 deleted, 1 could not be read; 5,000 documents, 0 passages"
    named = {"hidden": ["a", "b", "c"], "archives: not opened": ["/docs/faq.pdf.gz"]}
    left = report(left_out={"hidden": 4, "not text": 1500, "archives: not opened": 1}, left_out_paths=named)
    assert index._left_out(left) == "1,500 not text, 4 hidden, 1 archives: not opened (faq.pdf.gz)"


def test_a_collection_without_documents_or_words_is_refused() -> None:
    with pytest.raises(DataError, match="there is no document there") as caught:
        index._require_documents(report(left_out={"hidden": 2}))
    assert caught.value.fix == "2 hidden"
    with pytest.raises(DataError, match="could be read: a.pdf: it is encrypted"):
        index._require_documents(report(documents=1, failed=[("a.pdf", "it is encrypted")]))
    fine = report(documents=1, passages=1)
    assert index._require_documents(fine) is fine
    index._require_named([Path("b.pdf")], report(failed=[("a.pdf", "x")]))
    with pytest.raises(DataError, match="a.pdf could not be read: x"):
        index._require_named([Path("b.pdf"), Path("a.pdf")], report(failed=[("a.pdf", "x")]))


def test_folders_are_followed_once_and_can_be_let_go(tmp_path: Path) -> None:
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"

    def collection() -> Any:
        return SimpleNamespace(name="n", roots=[a, b])

    assert index.followed_roots(collection(), [c, b], []) == [a, b, c]
    assert index.followed_roots(collection(), [], [str(a)]) == [b]
    with pytest.raises(UsageError, match="n does not follow .*c"):
        index.followed_roots(collection(), [], [str(c)])
    with pytest.raises(UsageError, match="would leave n with no folders"):
        index.followed_roots(collection(), [], [str(a), str(b)])


def test_many_documents_that_cannot_be_read_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    monkeypatch.setattr(index, "Collection", lambda name: nullcontext(SimpleNamespace(num_bytes=5)))
    failed = [(f"{n}.pdf", "x") for n in range(index.MOST_SHOWN + 2)]
    index.tell_report("n", report(failed=failed, left_out={"hidden": 1}, kept=[("/a", "gone")]), heard_by(heard))
    assert heard[0]["text"].startswith("/a: gone. Its documents stay as they were; `settle index n --without /a`")
    assert len(heard[1]["rows"]) == index.MOST_SHOWN and heard[1]["note"] == "and 2 more; --json has them all"
    assert heard[2]["text"] == "left out: 1 hidden" and heard[3]["text"].startswith("n: 32 could not be read; ")
    assert heard[4]["result"]["bytes"] == 5 and heard[4]["result"]["kept"] == [{"root": "/a", "why": "gone"}]
    assert len(heard[4]["result"]["failed"]) == 32
    heard.clear()
    index.tell_report("n", report(added=1), heard_by(heard))
    assert [event["kind"] for event in heard] == ["say", "result"]


def test_settings_of_a_part_hold_while_it_is_the_same() -> None:
    before = {"name": "window", "tokens": 99}
    asked = IndexSettings.model_validate({})
    assert vars(index._part(Chunker, asked.chunker, before))["tokens"] == 99
    other = IndexSettings.model_validate({"chunker": {"name": "window", "tokens": 55}})
    assert vars(index._part(Chunker, other.chunker, before))["tokens"] == 55
    named = index._part(Chunker, IndexSettings.model_validate({"chunker": "structure"}).chunker, before)
    assert type(named).part_name() == "structure"


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_the_loss_that_is_quoted_has_its_standard_error(rows: int) -> None:
    """stderr: of the mean, by the n - 1 of a sample."""
    shares = np.linspace(0.2, 0.9, rows)
    targets = np.array([[1.0, 0.0]] * rows)
    context = SimpleNamespace(best=Evaluated(step=3), actual={"time": 1.0})
    decision._quote_loss(cast(Any, context), np.stack([shares, 1 - shares], 1), targets)
    losses = -np.log(shares)
    best, actual = context.best, context.actual
    assert best.loss == actual["loss"] == pytest.approx(losses.mean())
    assert best.stderr == pytest.approx(np.sqrt(losses.var(ddof=1) / rows) if rows > 1 else 0.0)
    assert best.step == 3 and actual["time"] == 1.0
