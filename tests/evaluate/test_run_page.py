"""A run as one HTML file: what it shows, and that nothing in it runs, loads or names a folder of this machine."""

import json
import re
from html import unescape
from pathlib import Path

import pytest

from settle.base import events as kinds
from settle.base.run import Run
from settle.cli import main
from settle.evaluate.report.run_page import run_page
from tests.studio import made_runs
from tests.studio.payloads import PAYLOADS

LARGEST = 350_000  # bytes


def shared(name: str, *options: str) -> str:
    assert main(["runs", "share", name, *options]) == 0
    return Path(f"{name}.html").read_text(encoding="utf-8")


@pytest.fixture
def folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pages are written, beside a home with runs of every kind."""
    made_runs.fill(home)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_page_shows_verdict_chart_figures_settings_and_machine(folder: Path) -> None:
    text = unescape(re.sub(r"<[^>]+>", " ", shared("calm")))
    for shown in ("settled", "10 % more tokens gain 0.4 % at most", "2.2600 ± 0.0100 nats", "1 min 44 s", "inside +4 %",
                  "expected at the end 2.4 (2.1 – 2.8)", "the sea was calm.", "optimizer.lr"):  # fmt: skip
        assert shown in text
    assert 'class="held" d="M' in shared("calm") and "Loss in nats per token" in text


def test_every_run_has_a_page_also_one_that_failed_or_made_no_step(folder: Path, capsys) -> None:
    for name in ("stuck", "torn", "elder", "paused", "half-deleted"):
        assert "not finished" in shared(name) or name == "elder"
    assert main(["runs", "share", "from-the-future"]) != 0
    assert "version 99" in capsys.readouterr().err and not (folder / "from-the-future.html").exists()


def test_nothing_in_it_runs_or_loads_and_no_folder_is_named(home: Path, folder: Path) -> None:
    rows = [{"question": PAYLOADS[n], "base": PAYLOADS[-n], "tuned": PAYLOADS[n + 9]} for n in range(8)]
    plan = {"version": 1, "asked": {"inputs": ["/home/person/secret/notes"], "model": PAYLOADS[1]},
            "origin": {"inputs": "asked", "model": "asked"}, "tuning": {"base": "/home/person/m.gguf"},
            "machine": {"processor": PAYLOADS[2]}}  # fmt: skip
    samples = [kinds.Sample(step=1, moment="start", prompt=PAYLOADS[3], text="\x1b]0;title " + "x" * 10**6)]
    compared = {"verdict": "better", "headline": PAYLOADS[4], "base": PAYLOADS[0], "tuned": "t", "changed": rows}
    result = {**made_runs.FINISHED, "why": PAYLOADS[5], "comparison": compared}
    made_runs.write_run(home, "hostile", [*made_runs.training(2000), *samples], result, plan=plan)
    page = run_page(Run.find("hostile"))
    known = "html head meta title style body main section details summary table thead tbody tr td th h1 h2 p div span"
    drawn = "svg clipPath rect g line path text"
    assert set(re.findall(r"<(\w+)", page)) <= set(f"{known} {drawn}".split())
    assert not re.search(r"<[^>]*\s(on\w+|src|href|srcdoc)\s*=", page) and "default-src 'none'" in page
    assert "/home/person" not in page and "notes" in page and "\x1b" not in page
    assert all(json.dumps(row["tuned"])[1:-1][:9] in unescape(page).replace('"', '\\"') for row in rows)
    assert len(page.encode()) < LARGEST
    assert page == run_page(Run.find("hostile"))


def test_where_it_is_written(folder: Path, capsys) -> None:
    assert main(["runs", "share", "calm", "--out", "page.html", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (folder / "page.html").stat().st_size == result["bytes"]
    assert main(["runs", "share", "calm", "--out", "none/page.html"]) != 0
    assert "choose another place with --out" in capsys.readouterr().err
    assert main(["runs", "share", "calm", "rough"]) == 2 and main(["runs", "share"]) == 2
