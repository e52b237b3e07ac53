"""Models, doctor and audit, in a real browser: each from its first click to its end."""

import json
import re
import shutil
from pathlib import Path

import pytest

from settle.jobs.tradeoffs import MeasuredResult, read_tradeoffs
from tests import examples
from tests.library.pull.hub_server import serving
from tests.studio import made_runs
from tests.studio.conftest import COMMAND, axe_findings, running_studio
from tests.studio.made_models import stock

RECORDS = Path(__file__).parent / "records"  # result.json of real runs of pick and shrink over tiny models
KNOB = Path(__file__).parents[1] / "doctor/wobbly_knob.py"


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """One whose hub is on this machine, with models, results of pick and shrink, and something that is wrong."""
    pytest.importorskip("nicegui", reason="needs the extra `studio`")
    home, hub = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("hub")
    made_runs.fill(home)
    stock(home)
    (hub / "someone/Small-GGUF").mkdir(parents=True)
    shutil.copyfile(home / "tiny.gguf", hub / "someone/Small-GGUF/small.gguf")
    (home / "picks/code").mkdir(parents=True)
    shutil.copyfile(RECORDS / "pick.json", home / "picks/code/result.json")
    for name, record in (("smaller", "shrink.json"), ("routes", "shrink-plan.json")):
        folder = made_runs.write_run(home, name, [], command="shrink")
        shutil.copyfile(RECORDS / record, folder / "result.json")
    (home / "level").write_text("4")
    (home / "pause").write_text("0.1")  # seconds of a measurement, so that a proof can be watched
    with pytest.MonkeyPatch.context() as patch, serving(hub) as address:
        site = tmp_path_factory.mktemp("site")
        examples.install(site, {"doctor/checks": "wobbly_knob:WobblyKnob"}, patch, lambda name: KNOB.read_text())
        yield from running_studio(home, HF_ENDPOINT=address)
    examples.forget_parts()


def test_a_model_is_pulled_by_a_button_that_names_host_and_size_and_then_removed(page, studio):
    page.goto("/models")
    page.get_by_label("Name, owner/name").fill("someone/Small-GGUF")
    page.get_by_role("button", name="Look up").click()
    size = (studio.home / "tiny.gguf").stat().st_size
    pull = page.get_by_role("button", name=re.compile(r"^Pull [\d.,]+ \w?B from 127\.0\.0\.1$"))
    pull.wait_for(timeout=COMMAND)
    assert float(re.search(r"[\d.]+", pull.inner_text())[0]) == pytest.approx(size / 1e3, rel=0.01)
    assert not (studio.home / "models/small").exists()  # to look is not to pull
    pull.click()
    page.get_by_text("small is here.").wait_for(timeout=COMMAND)
    (stored,) = (studio.home / "models/small").glob("*.gguf")
    assert stored.read_bytes() == (studio.home / "tiny.gguf").read_bytes()
    page.get_by_role("rowheader", name="small", exact=True).wait_for()
    row = page.get_by_role("table", name="Models of this machine").get_by_role("row", name="small")
    assert "someone/Small-GGUF of the hub" in row.inner_text()
    row.get_by_role("button", name="Delete small").click()
    page.get_by_text(re.compile(r"^Delete small from this machine: [\d.]+ kB\?$")).wait_for()
    assert stored.exists()
    page.get_by_role("button", name="Delete small for good").click()
    page.get_by_text(re.compile(r"^[\d.]+ kB freed\.$")).wait_for(timeout=COMMAND)
    assert not stored.exists()
    page.get_by_role("rowheader", name="small", exact=True).wait_for(state="detached")


def test_what_the_hub_does_not_have_is_said(page):
    page.goto("/models")
    page.get_by_label("Name, owner/name").fill("someone/nothing")
    page.keyboard.press("Enter")
    page.get_by_text("there is no model 'someone/nothing' on the hub").first.wait_for(timeout=COMMAND)


def test_pick_and_shrink_are_drawn_with_their_frontier(page):
    page.goto("/models")
    choice = page.get_by_label("Result")
    choice.select_option("shrink routes")
    picture = page.get_by_role("img", name=re.compile("^Size against loss"))
    record = json.loads((RECORDS / "shrink-plan.json").read_text())
    files = [file for file in record["candidates"] if file["divergence"]]
    assert picture.locator(".dot").count() == len(files) >= 8
    best = [f for f in files if not any(_beats(other, f) for other in files)]
    assert 1 < picture.locator(".dot.best").count() == len(best) < len(files)
    few = page.get_by_role("table", name="Size against loss", exact=True).locator("tbody tr")
    assert [row.endswith("frontier") for row in few.all_inner_texts()] == [True] * 4
    page.get_by_text(f"{len(files) - 4} more").first.click()
    more = page.get_by_role("table", name="Size against loss: more").locator("tbody tr")
    assert more.count() == len(files) - 4
    choice.select_option("shrink smaller")
    page.locator(".dot.chosen rect").first.wait_for()
    assert "chosen, frontier" in page.get_by_role("table", name="Size against loss", exact=True).inner_text()
    choice.select_option("pick code")
    page.get_by_role("img", name=re.compile("^Speed against quality: ")).wait_for()
    names = page.get_by_role("table", name=re.compile("^Speed against quality")).locator("tbody th").all_inner_texts()
    assert set(names) == {model["name"] for model in json.loads((RECORDS / "pick.json").read_text())["models"]}
    assert axe_findings(page) == []


def _beats(one, other):
    pairs = [(f["bytes"], f["divergence"]["kl"]["value"]) for f in (one, other)]
    return all(a <= b for a, b in zip(*pairs, strict=True)) and pairs[0] != pairs[1]


@pytest.mark.parametrize("text", ["", "{}", '{"candidates": [{"name": 1}]}', '{"candidates": 3, "chosen": null}'])
def test_a_damaged_result_is_an_error_of_its_file(tmp_path, text):
    from settle.base.errors import SettleError

    path = tmp_path / "result.json"
    path.write_text(text)
    for kind in ("pick", "shrink"):
        with pytest.raises(SettleError, match=re.escape(str(path))):
            read_tradeoffs(MeasuredResult(kind, "x", path))


def test_what_fits_is_listed_by_itself(page):
    page.goto("/models")
    table = page.get_by_role("table", name="Models that fit")
    table.get_by_role("button", name="Look up").first.wait_for(timeout=COMMAND)
    page.get_by_text("models of the catalogue fit").wait_for()


def test_a_finding_is_proven_to_its_end_and_its_fix_is_written(page, studio):
    page.goto("/doctor")
    page.get_by_label("Only these checks").fill("901")
    page.get_by_role("button", name="Look", exact=True).click()
    page.get_by_role("heading", name="901 · the level is 4").wait_for(timeout=COMMAND)
    page.get_by_text("likely", exact=True).wait_for()
    assert not (studio.home / "asked").exists()  # a look changes nothing
    page.get_by_role("button", name="Prove 901", exact=True).click()
    page.get_by_text(re.compile(r"^A/B: \d+ of 32")).wait_for(timeout=COMMAND)
    page.get_by_text("proven", exact=True).wait_for(timeout=COMMAND)
    page.get_by_text(re.compile(r"^proven: the level is 4\. wobble .* mm, .*95 %")).wait_for()
    page.get_by_text("the fix holds on other items").wait_for()
    assert (studio.home / "level").read_text() == "4"  # to prove is not to fix
    page.get_by_role("button", name="Fix 901", exact=True).click()
    page.get_by_text("Fix: wrote level = 2").wait_for(timeout=COMMAND)
    assert (studio.home / "level").read_text() == "2" and len((studio.home / "asked").read_text().splitlines()) == 32
    assert axe_findings(page) == []
    page.get_by_role("button", name="Look", exact=True).click()
    page.get_by_text("No check finds anything wrong.").wait_for(timeout=COMMAND)


def test_the_doctor_says_what_is_wrong_with_a_run(page):
    page.goto("/doctor?subject=burst")
    page.get_by_role("button", name="Look", exact=True).click()
    page.get_by_text("likely", exact=True).first.wait_for(timeout=COMMAND)


def test_the_audit_says_in_a_line_what_left_and_lists_exceptions_alone(page, studio):
    ledgers = [
        ("quiet", []),
        ("pull", [{"kind": "site", "pid": 7, "call": "connect", "address": "203.0.113.80", "port": 443}]),
    ]
    for command, lines in ledgers:
        path = studio.home / f"ledgers/2026-01-02T03-04-05-{command}-7-abcd.jsonl"
        begun = {"kind": "opened", "version": 2, "pid": 7, "level": "observed"}
        path.write_text("".join(json.dumps(line) + "\n" for line in (begun, *lines, {"kind": "closed", "repeats": []})))
    page.goto("/doctor")
    page.get_by_text(re.compile(r"^1 of [\d,]+ commands since 2 Jan.* made undeclared connections")).wait_for()
    assert page.get_by_role("table", name="Exceptions").locator("td", has_text="quiet").count() == 0
    page.get_by_role("row", name="pull").get_by_role("button", name="Connections").click()
    page.get_by_role("cell", name="203.0.113.80", exact=True).wait_for()
    for path in (studio.home / "ledgers").glob("2026-01-02*"):
        path.unlink()  # the fixture reads what is left there


def test_without_a_collection_the_page_leads_to_the_form(page):
    page.goto("/documents")
    page.get_by_role("link", name="Index a folder").click()
    page.get_by_label("paths", exact=True).wait_for()
