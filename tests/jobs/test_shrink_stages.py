"""The stages of a shrink without a model: which budget searches how, what is planned, and what the result says."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from settle.base.errors import RunError
from settle.base.event_log import Events
from settle.base.events import Listing, Say, Warn
from settle.base.files import read_json
from settle.jobs import shrink
from settle.jobs.settings import ShrinkSettings
from settle.jobs.shrink import ShrinkResult, _requantizing, _warn_of_loss
from settle.shrink.candidates import ShrinkCandidate


class Candidates:
    """Notes what is asked of it; every file is measured as it is."""

    quantizer = SimpleNamespace(part_name=lambda: "auto")
    smallest = 700

    def __init__(self) -> None:
        self.log: list[tuple[str, object]] = []
        self.known: dict[str, ShrinkCandidate] = {}

    def _made(self, what: str, value: object) -> ShrinkCandidate:
        self.log.append((what, value))
        return ShrinkCandidate(f"{what} {value}", {"t": "Q4_0"}, 600, "Q4_K_M" if what == "of_mix" else None, 0.5)

    def of_mix(self, mix: str) -> ShrinkCandidate:
        return self._made("of_mix", mix)

    def of_size(self, size: int) -> ShrinkCandidate:
        return self._made("of_size", size)

    def unchanged(self) -> ShrinkCandidate:
        return self._made("unchanged", None)

    def measure(self, candidate: ShrinkCandidate) -> ShrinkCandidate:
        self.log.append(("measure", candidate.name))
        self.known[candidate.name] = candidate
        return candidate

    def time(self, candidate: ShrinkCandidate) -> ShrinkCandidate:
        self.log.append(("time", candidate.name))
        return candidate

    def expected_kl(self, chosen: ShrinkCandidate) -> float:
        return 0.25


def context(tmp_path: Path, heard: list[Any], record: Any = None, **asked: Any) -> Any:
    c: Any = shrink.ShrinkContext.__new__(shrink.ShrinkContext)
    c.settings = ShrinkSettings.model_validate({"model": "m", "compare": False} | asked)
    c.events, c.record, c.candidates = Events(listeners=[heard.append]), record, Candidates()
    c.routes, c.expected, c.chosen, c.exported = [], {}, None, None
    (tmp_path / "out").mkdir(exist_ok=True)
    c.folder, c.fingerprint = SimpleNamespace(name="r", path=tmp_path, out=tmp_path / "out"), "f"
    model = SimpleNamespace(file="file", threads=1, data=SimpleNamespace(name="a text", examples=()))
    model.source = SimpleNamespace(name="m")
    whole = SimpleNamespace(name="m", source=SimpleNamespace(sha256="5", path=tmp_path / "m.gguf"))
    c.session = SimpleNamespace(model=model, whole=whole, cut_report=None)
    return c


@pytest.mark.parametrize(
    ("asked", "log"),
    [
        ({"to": "Q4_K_M"}, [("of_mix", "Q4_K_M"), ("measure", "of_mix Q4_K_M")]),
        # with a file that shows what rounding twice costs, no smaller than there can be
        ({"to": "Q4_K_M", "requantize": True}, [("of_size", 700), ("measure", "of_size 700")]),
        ({"to": "400MB"}, [("best_within_size", 400_000_000)]),
        ({"lose": "1%"}, [("smallest_within_loss", 0.01)]),
        ({"speed": 40}, [("best_at_speed", 40.0)]),
        ({"vocabulary": True, "inputs": ["x"]}, [("unchanged", None), ("measure", "unchanged None")]),
    ],
)
def test_each_budget_is_searched_in_its_own_way(
    asked: dict[str, Any], log: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = context(tmp_path, heard := [], **asked)
    for name in ("best_within_size", "smallest_within_loss", "best_at_speed"):
        monkeypatch.setattr(shrink, name, lambda candidates, amount, name=name: candidates._made(name, amount))
    found = SimpleNamespace(num_bytes=2_500_000)
    monkeypatch.setattr(shrink, "find_fallback", lambda file, mix, has_importance: found if asked.get("to") else None)
    shrink.search(c)
    assert c.candidates.log[-len(log) :] == log and c.chosen is not None
    warned = [event.text for event in heard if isinstance(event, Warn)]
    assert len(warned) == (asked.get("to") == "Q4_K_M") and all("--to 2.5MB spends" in text for text in warned)


def test_a_plan_measures_every_route_and_an_earlier_choice_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shrink, "find_fallback", lambda file, mix, has_importance: None)
    c = context(tmp_path, heard := [], plan=True)
    c.routes = [ShrinkCandidate("a", {}, 9), ShrinkCandidate("b", {}, 8)]
    shrink.search(c)
    assert c.candidates.log == [("measure", "a"), ("time", "a"), ("measure", "b"), ("time", "b")] and c.chosen is None
    chosen = {"name": "x", "kinds": {"t": "Q8_0"}, "bytes": 77, "recipe": None, "predicted_kl": 0.1}
    c = context(tmp_path, heard, record={"chosen": chosen}, to="Q4_K_M")
    shrink.search(c)
    assert (c.chosen.name, c.chosen.num_bytes, dict(c.chosen.kinds)) == ("x", 77, {"t": "Q8_0"})
    with pytest.raises(RunError, match="plan.json"):
        shrink.search(context(tmp_path, heard, record={"chosen": {"name": "x"}}, to="Q4_K_M"))
    c = context(tmp_path, heard, to="Q4_K_M")
    c.candidates.measure = lambda candidate: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        shrink.search(c)
    assert any(isinstance(e, Say) and "the same command continues" in e.text for e in heard)


def test_the_plan_is_what_will_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrink, "describe", lambda: {"cores": 2})
    c = context(tmp_path, [], to="400MB")
    c.chosen = ShrinkCandidate("x", {"t": "Q8_0"}, 77, predicted=0.5)
    shrink.plan(c)
    written = read_json(tmp_path / "plan.json")
    assert written["chosen"]["kinds"] == {"t": "Q8_0"} and written["chosen"]["bytes"] == 77
    assert written["corpus"] == "f" and written["base"] == {"name": "m", "sha256": "5"}
    assert read_json(tmp_path / "forecast.json") == {"kl": 0.25}
    (tmp_path / "plan.json").unlink()
    c.record = {"version": 1}
    shrink.plan(c)
    assert not (tmp_path / "plan.json").exists(), "an earlier session planned it"


def test_the_file_is_named_by_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported: list[Path] = []
    monkeypatch.setattr(shrink, "record_made", lambda run, files: None)
    monkeypatch.setattr(shrink, "emit_gate_checks", lambda gate, events: None)
    c = context(tmp_path, [], to="400MB")
    shrink.export(c)
    assert c.exported is None and c.gate is None
    c.session.export = lambda kinds, path, mix: exported.append(path) or {"passed": True}
    for chosen in (
        ShrinkCandidate("x", {"t": "Q4_K"}, 10**6, "Q4_K_M"),
        ShrinkCandidate("x", {"t": "Q4_K"}, 12_340_000),
        ShrinkCandidate("x", {}, 1),
    ):
        c.chosen = chosen
        shrink.export(c)
    assert [path.name for path in exported] == ["r-Q4_K_M.gguf", "r-auto-12.3MB.gguf", "r-vocabulary.gguf"]
    assert c.gate == {"passed": True}


def measured(name: str, size: int, speed: float, peak: int, rise: float = 0.02) -> ShrinkCandidate:
    kl = SimpleNamespace(value=0.1, low=0.05, high=0.2, is_bounded=True)
    of = SimpleNamespace(value=rise, low=rise - 0.01, high=rise + 0.01, is_bounded=True)
    same = SimpleNamespace(value=0.9)
    divergence: Any = SimpleNamespace(kl=kl, rise=of, same_top=same, reference_loss=4.0, to_json=dict)
    footprint: Any = SimpleNamespace(speed=SimpleNamespace(median=speed), peak_bytes=peak, to_json=dict)
    return ShrinkCandidate(name, {"t": "Q4_0"}, size, divergence=divergence, footprint=footprint)


@pytest.mark.parametrize(
    ("peak", "says"),
    [(500_000_000, "memory falls from 900 to 500 MB"), (1_200_000_000, "memory rises from 900 to 1,200 MB")]
    + [(900_000_001, "memory stays 900 MB")],
)
def test_the_result_says_what_was_gained_and_lost(peak: int, says: str, tmp_path: Path) -> None:
    c = context(tmp_path, [], to="400MB")
    c.exported = tmp_path / "x.gguf"
    c.exported.write_bytes(b"x" * 250)
    c.reference = measured("F16", 1000, 10.0, 900_000_000)
    c.session.text_loss = lambda path: None
    c.spending = lambda: {"seconds": 7.0, "peak_memory": 9.0, "joules": 11.0}
    made = shrink._losses(c, measured("x", 250, 25.0, peak), [])
    assert made.why == f"25% of the size, 2.50 times as fast, {says}, and the loss on a text changes by +2.00%"
    assert made.actual == {"kl": 0.1, "time": 7.0, "peak_memory": 9.0, "energy": 11.0}
    assert made.forecast == {"kl": 0.25} and made.base == {"name": "m", "sha256": "5"}
    c.session.cut_report = SimpleNamespace(to_json=lambda: {"tokens": 3})
    c.session.text_loss = lambda path: SimpleNamespace(rise=SimpleNamespace(value=-0.01), to_json=lambda: {"bits": 1})
    made = shrink._losses(c, measured("x", 250, 25.0, peak), [])
    assert made.why.endswith("changes by -1.00%")
    assert made.vocabulary == {"tokens": 3, "text": {"bits": 1}}


def test_a_report_has_the_chosen_file_and_the_others_largest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(shrink, "draw_pareto", lambda points, path, title: drawn.append(points) or path)
    monkeypatch.setattr(shrink, "pareto_rows", lambda points: [[p.name] for p in points])
    c = context(tmp_path, heard := [], plan=True)
    c.reference = measured("F16", 1000, 10.0, 1)
    c.candidates.known = {name: measured(name, size, 1.0, 1) for name, size in (("a", 300), ("b", 500))}
    c.expected = {"a": 12.0}
    shrink.report(c)
    assert (c.made.verdict, c.made.why) == ("planned", "2 routes")
    assert [(r["name"], r["expected_speed"]) for r in c.made.candidates] == [
        ("F16", None),
        ("b", None),
        ("a", 12.0),
    ]
    assert list(c.made.files) == ["picture"]
    c.exported, c.chosen = tmp_path / "x.gguf", c.candidates.known["a"]
    c.exported.write_bytes(b"x")
    sides = [measured("n", 1, s, 1).footprint for s in (10.0, 30.0)]
    monkeypatch.setattr(shrink, "footprints", lambda paths, threads: sides)
    c.candidates.reference = lambda before: measured("F16", 1000, 10.0, 1)
    judged = measured("n", 1, 1.0, 1, rise=0.5).divergence
    c.session.model.judge = lambda path: judged
    monkeypatch.setattr(
        shrink, "_losses", lambda c, chosen, others: ShrinkResult(verdict="v", candidates=[m.to_json() for m in others])
    )
    shrink.report(c)
    assert c.chosen.footprint is sides[1] and c.chosen.divergence is judged
    assert c.chosen.selection is c.candidates.known["a"].divergence, "what chose it is kept beside what judges it"
    assert [p.name for p in drawn[-1]] == ["F16", "a", "b"] and [p.chosen for p in drawn[-1]] == [False, True, False]
    assert [r["name"] for r in c.made.candidates] == ["b"]
    assert list(c.made.files) == ["gguf", "card", "picture"]
    assert len([e for e in heard if isinstance(e, Listing)]) == 2


def test_a_loss_beyond_what_was_asked_is_said(tmp_path: Path) -> None:
    c = context(tmp_path, heard := [], lose="5%")
    # at most 3 % on the text, and 0.2 nats of 4 on the model's own
    _warn_of_loss(c, measured("x", 1, 1.0, 1))
    assert not heard
    _warn_of_loss(c, measured("x", 1, 1.0, 1, rise=0.0401))
    assert "loses up to 5.01%, more than the 5.00% asked for" in heard[0].text
    c = context(tmp_path, more := [], to="400MB")
    _warn_of_loss(c, measured("x", 1, 1.0, 1, rise=0.5))
    assert not more


def test_the_command_for_a_quantized_model_keeps_the_budget() -> None:
    settings = ShrinkSettings.model_validate({"model": "m", "inputs": ["a.txt"], "lose": "1%"})
    assert _requantizing(settings) == "settle shrink m a.txt --lose 1% --requantize"
    fast = ShrinkSettings.model_validate({"model": "m", "speed": 40})
    assert _requantizing(fast) == "settle shrink m --speed 40.0 --requantize"


def test_events_go_to_the_run_once_its_data_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    c = context(tmp_path, heard)
    c.source = SimpleNamespace(tokenizer=None, part=SimpleNamespace(max_position_embeddings=64))
    c.work, c.spending = tmp_path, SimpleNamespace(start=lambda *given: None)
    c.run.events = tmp_path / "events.jsonl"
    texts = SimpleNamespace(warnings=["few texts"], fingerprint="f")
    monkeypatch.setattr(shrink, "find_run", lambda name: None)
    monkeypatch.setattr(shrink, "calibration_data", lambda *given: texts)
    monkeypatch.setattr(shrink, "require_same_data", lambda c, fingerprint: None)
    for name in ("MeasuredModel", "Session", "Candidates"):
        monkeypatch.setattr(shrink, name, lambda *given, **named: SimpleNamespace())
    shrink.data(c)
    c.events.emit(Say(text="from here on"))
    c.events.close()
    lines = c.run.events.read_text()
    assert "from here on" in lines and "few texts" not in lines and c.fingerprint == "f"
    assert heard[0].text == "few texts"
