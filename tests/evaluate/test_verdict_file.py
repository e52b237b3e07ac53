"""verdict.json: what it says follows from its rows, and whatever else is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from settle.base.errors import FormatError
from settle.base.statistics import paired_test
from settle.evaluate.compare import verdict_file
from settle.evaluate.compare.compare import Comparison
from settle.evaluate.compare.verdict_file import ScoredRows, VerdictFile, digest
from settle.model.source import Source

BEFORE, AFTER = [0.0] * 54 + [1.0] * 6, [0.0] * 6 + [1.0] * 54
FAMILIES = [i // 2 for i in range(60)]
SCHEMA = Path(__file__).parents[2] / "docs" / "verdict.schema.json"


def kept(folder: Path, margins: list[float] | None = None, **changes: Any) -> Path:
    """Return the verdict.json of a comparison of two files in a folder."""
    sources = [Source(folder / name, "gguf", name) for name in ("base.gguf", "tuned.gguf")]
    for source in sources:
        source.path.write_text(source.name)
    scores = {"families": FAMILIES, "base": BEFORE, "tuned": AFTER, "margins": margins}
    rows = ScoredRows(sha256=digest(["asked"]), numbers=list(range(1, 61)), **scores)
    margin = None if margins is None else paired_test([0.0] * 60, margins, FAMILIES)
    score = paired_test(BEFORE, AFTER, FAMILIES)
    comparison = Comparison("base", "tuned", "exact match", True, score, margin=margin, scored=rows, **changes)
    path = comparison.corrected().keep(folder, *sources)
    assert path is not None
    return path


@pytest.mark.parametrize("margins", [None, [0.1 + i / 100 for i in range(60)]], ids=["scores", "preferences"])
def test_what_it_says_follows_from_its_rows(margins: list[float] | None, tmp_path: Path) -> None:
    found = VerdictFile.read(kept(tmp_path, margins, judged_before=2))
    assert found.verdict == "better" and found.passes and found.unfounded() == []
    assert found.candidate.sha256 == Source(tmp_path / "tuned.gguf", "gguf", "tuned").sha256 != found.base.sha256
    assert (found.score.rows, found.score.families, found.judged_before) == (60, 30, 2)
    assert (found.margin is None) == (margins is None)


def _tampered(path: Path, change: Any) -> VerdictFile:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return VerdictFile.read(path)


def test_a_figure_that_its_rows_do_not_give_is_named(tmp_path: Path) -> None:
    assert _tampered(kept(tmp_path), lambda v: v["score"].update(low=0.3)).unfounded() == ["low"]
    assert _tampered(kept(tmp_path), lambda v: v.update(verdict="worse")).unfounded() == ["verdict"]
    one_lost = _tampered(kept(tmp_path), lambda v: v["rows"]["tuned"].__setitem__(30, 0.0)).unfounded()
    assert {"tuned", "difference", "low"} <= set(one_lost)
    assert _tampered(kept(tmp_path, [0.1] * 60), lambda v: v.update(margin=None)).unfounded() == ["margin"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda v: v.update(version=2), "version"),
        (lambda v: v.update(better=True), "better"),
        (lambda v: v.pop("rows"), "rows"),
        (lambda v: v["rows"]["base"].pop(), "not of one length"),
        (lambda v: v["base"].update(sha256="abc"), "base.sha256"),
    ],
)
def test_one_that_is_not_what_its_schema_says_is_refused(change: Any, named: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=named):
        _tampered(kept(tmp_path), change)


def test_none_or_a_broken_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="there is no verdict.json in"):
        VerdictFile.read(tmp_path / verdict_file.NAME)
    (tmp_path / verdict_file.NAME).write_text("{")
    with pytest.raises(FormatError, match="cannot be read"):
        VerdictFile.read(tmp_path / verdict_file.NAME)


@pytest.mark.parametrize(
    ("goal", "verdict", "passes"),
    [("better", "no different", False), ("not worse", "no different", True), ("not worse", "worse", False)]
    + [("not worse", "too few rows to tell", False), ("not worse", "better", True)],
)
def test_a_shrunk_model_need_only_be_not_worse(goal: str, verdict: str, passes: bool, tmp_path: Path) -> None:
    assert _tampered(kept(tmp_path), lambda v: v.update(goal=goal, verdict=verdict)).passes is passes


def test_its_schema_is_published() -> None:
    assert json.loads(SCHEMA.read_text()) == VerdictFile.model_json_schema()
