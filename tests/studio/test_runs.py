"""Runs, a run, runs compared and a run replayed, in a real browser."""

import http.client
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from settle.base import events as kinds
from settle.base.event_log import Events
from settle.base.run import Run
from settle.formats.gguf import export_gguf
from settle.formats.safetensors import export_safetensors
from tests.studio import made_runs
from tests.studio.conftest import COMMAND, SECONDS, assert_kept_to_itself, axe_findings, start_studio, watch
from tests.trained import trained


def legend(page, chart: str):
    return page.locator("figure.chart", has_text=chart).locator(".legend")


def figure(page, chart: str):
    return page.locator("figure.chart", has_text=chart)


def test_the_list_shows_every_run_also_those_that_are_damaged(page):
    page.goto("/")
    row = page.get_by_role("row", name=re.compile("^Choose calm"))
    row.get_by_text("settled").wait_for()
    assert "1 min 44 s" in row.inner_text() and "2.26 nats/token" in row.inner_text()
    assert "diverged" in page.get_by_role("row", name=re.compile("^Choose burst")).inner_text()
    assert "interrupted" in page.get_by_role("row", name=re.compile("^Choose paused")).inner_text()
    assert "version 99" in page.get_by_role("row", name=re.compile("^Choose from-the-future")).inner_text()
    page.get_by_role("link", name="half-deleted").wait_for()


def test_a_new_run_appears_and_one_that_is_removed_goes(page, studio):
    page.goto("/")
    page.get_by_role("link", name="calm").wait_for()
    folder = made_runs.write_run(studio.home, "newcomer", made_runs.training(10))
    page.get_by_role("link", name="newcomer").wait_for()
    shutil.rmtree(folder)
    page.get_by_role("link", name="newcomer").wait_for(state="detached")


def test_runs_are_found_noted_and_deleted_with_consent(page, studio):
    folder = made_runs.write_run(studio.home, "passing", made_runs.training(10), made_runs.FINISHED)
    page.goto("/")
    page.get_by_role("row", name=re.compile("^Choose calm")).wait_for()
    page.get_by_label("Search").press_sequentially("passing")
    page.get_by_role("row", name=re.compile("^Choose calm")).wait_for(state="detached")
    page.get_by_label("Choose passing").check()
    page.get_by_role("button", name="Note or tags").click()
    page.get_by_label("Note", exact=True).fill("with more data #keep")
    page.get_by_role("button", name="Keep").click()
    page.get_by_role("link", name="passing #keep").wait_for()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_text(re.compile(r"Delete passing with everything made: [\d.]+ kB")).wait_for()
    assert (folder / "note.txt").read_text() == "with more data #keep"
    page.get_by_role("button", name="Delete 1 for good").click()
    page.get_by_text("No run is like that").wait_for()
    assert not folder.exists()


def test_a_home_without_runs_says_how_to_start_one(browser, tmp_path):
    live = start_studio(tmp_path)
    context = browser.new_context()
    tab = context.new_page()
    seen = watch(tab)
    tab.goto(live.link)
    assert tab.get_by_role("main").get_by_role("link", name="New run").get_attribute("href") == "/new"
    tab.get_by_role("link", name="Chat", exact=True).click()
    tab.get_by_role("link", name="Pull SmolLM2").wait_for()
    context.close()
    live.stop()
    assert_kept_to_itself(seen, live.address)


def test_a_finished_run_says_all_that_is_known_of_it(page):
    page.goto("/")
    page.get_by_role("link", name="calm").click()
    page.get_by_role("heading", name="calm", level=1).wait_for()
    for text in ("State: settled", "2.2600 ± 0.0100 nats, at step 200", "passed: the exported file is the model",
                 "Nothing left this machine.", "the sea was calm.", "stage: training"):  # fmt: skip
        page.get_by_text(text).first.wait_for()
    forecast = page.get_by_role("table", name="Forecast and actual")
    assert "1 min 44 s" in forecast.inner_text() and "inside" in forecast.inner_text()
    legend(page, "Loss, nats").get_by_text("held-out 2.2").wait_for()  # drawn once the points are there
    for name in ("held-out 2.2", "training 2.2", "expected at the end 2.4 (2.1 – 2.8)"):
        assert name in legend(page, "Loss, nats").inner_text()
    assert "memory 0.3002" in legend(page, "Memory, GB").inner_text()
    assert "power 7.5" in legend(page, "Power, W").inner_text()
    assert not page.get_by_role("button", name="Stop").is_visible()
    assert axe_findings(page) == []


def test_a_finished_run_is_exported_downloaded_renamed_and_deleted(page, studio, tmp_path):
    made, folder = trained(), made_runs.write_run(studio.home, "leaving", made_runs.training(10), plan={})
    export_safetensors(made.part, made.weights, made.tokenizer, folder / "out/hf", "f32", {"name": "leaving"})
    export_gguf(made.part, made.weights, made.tokenizer, folder / "out/leaving.gguf", "f16", {"name": "leaving"})
    files = {"gguf": str(folder / "out/leaving.gguf"), "safetensors": str(folder / "out/hf")}
    (folder / "result.json").write_text(json.dumps({**made_runs.FINISHED, "files": files}))
    page.goto("/runs/leaving")
    for name, where in {"Chat": "/chat?model=leaving", "Tune further": "/new?command=tune&model=leaving",
                        "Shrink": "/new?command=shrink&model=leaving"}.items():  # fmt: skip
        assert page.locator(".content").get_by_role("link", name=name, exact=True).get_attribute("href") == where
    with page.expect_download() as download:
        page.get_by_role("button", name="Download leaving.gguf").click()
    assert Path(download.value.path()).read_bytes() == (folder / "out/leaving.gguf").read_bytes()
    with page.expect_download() as download:
        page.get_by_role("button", name="Share").click()
    download.value.save_as(tmp_path / download.value.suggested_filename)
    shared = page.context.new_page()
    shared.goto((tmp_path / "leaving.html").as_uri())
    shared.get_by_role("img", name=re.compile("^Held-out loss from 5")).wait_for()
    assert axe_findings(shared) == []
    shared.close()
    page.get_by_role("button", name="Export").click()
    page.get_by_label("For", exact=True).select_option("Hugging Face folder")
    page.get_by_label("File or folder").fill(str(tmp_path / "taken"))
    (tmp_path / "taken").mkdir()
    page.get_by_role("button", name="Write it").click()
    page.get_by_text("taken exists already").wait_for(timeout=COMMAND)
    page.get_by_label("Replace what is there").check()
    page.get_by_role("button", name="Write it").click()
    page.get_by_text(f"vllm serve {tmp_path / 'taken'}").wait_for(timeout=COMMAND)
    assert (tmp_path / "taken/model.safetensors").exists()
    page.get_by_role("button", name="Rename").click()
    page.get_by_label("New name").fill("left")
    page.get_by_role("button", name="Rename it").click()
    page.get_by_role("heading", name="left", level=1).wait_for()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_text(re.compile(r"Delete left with everything made: [\d.]+ \wB")).wait_for()
    assert axe_findings(page) == []
    page.get_by_role("button", name="Delete left for good").click()
    page.wait_for_url("**/")
    assert not folder.exists()


def test_a_spike_stays_on_the_curve(page):
    page.goto("/runs/calm")
    legend(page, "Loss, nats").get_by_text("held-out 2").wait_for()
    heights = [float(t) for t in figure(page, "Loss, nats").locator("g text").all_text_contents()]
    assert max(heights) >= 8  # of a step whose loss was 9.9


def test_the_axis_and_the_scale_of_a_chart_change(page):
    page.goto("/runs/calm")
    chart = figure(page, "Loss, nats")
    chart.get_by_text("held-out 2").wait_for()
    assert chart.locator("> svg > text", has_text="k").count()
    chart.get_by_role("combobox").select_option("time")
    chart.locator("> svg > text", has_text="min").first.wait_for()
    before = chart.locator("path.curve").first.get_attribute("d")
    chart.get_by_role("checkbox").check()
    assert chart.locator("path.curve").first.get_attribute("d") != before


def test_the_keyboard_moves_along_a_curve(page):
    page.goto("/runs/calm")
    chart = figure(page, "Loss, nats")
    chart.get_by_text("held-out 2").wait_for()
    chart.get_by_role("img").focus()
    page.keyboard.press("ArrowRight")
    chart.get_by_text(re.compile(r"^at .* tokens$")).wait_for()
    assert "held-out 5." in legend(page, "Loss, nats").inner_text()


def test_a_failed_run_says_why(page):
    page.goto("/runs/burst")
    page.get_by_text("State: diverged").wait_for()
    page.get_by_text("the loss rose without end after step 30").wait_for()


def test_a_run_that_ended_with_an_error_says_which(page, studio):
    page.goto("/")
    assert "failed" in page.get_by_role("row", name=re.compile("^Choose stuck")).inner_text()
    page.get_by_role("link", name="stuck").click()
    page.get_by_text("State: failed").wait_for()
    page.get_by_text("the disk is full", exact=True).wait_for()
    page.get_by_text("make room, then resume it", exact=True).wait_for()
    log = Events(next((studio.home / "runs").glob("*-stuck-*")) / "events.jsonl")
    log.emit(kinds.PhaseStarted(phase="loop", elapsed=15.0))  # it was resumed since
    log.close()
    page.goto("/runs/stuck")
    page.get_by_text("State: interrupted").wait_for()


def test_a_run_at_work_grows_while_it_is_watched(page, studio):
    folder = made_runs.write_run(studio.home, "busy", made_runs.training(40))
    run = Run(folder)
    with run.lock():
        page.goto("/runs/busy")
        page.get_by_text("State: running").wait_for()
        assert page.get_by_role("button", name="Stop").is_visible()
        log = Events(folder / "events.jsonl")
        began = time.monotonic()
        log.emit(kinds.Eval(step=50, tokens=50_000, loss=1.2345, stderr=0.01, bits_per_byte=0.5))
        legend(page, "Loss, nats").get_by_text("held-out 1.234").wait_for()
        assert time.monotonic() - began < SECONDS / 2
        log.emit(kinds.Rollback(step=51, loss=math.inf, to_step=40))
        page.get_by_text("step 51 went wrong").wait_for()
        log.emit(kinds.Eval(step=45, tokens=45_000, loss=1.5, stderr=0.01))  # what came after step 45 is taken back
        legend(page, "Loss, nats").get_by_text("held-out 1.5").wait_for()
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("press Ctrl-C in its terminal").wait_for()  # no ledger says which process it is
        log.close()
    page.get_by_text("State: interrupted").wait_for()
    assert page.get_by_role("button", name="Resume").is_visible()


def test_a_line_that_is_still_being_written_is_read_when_it_is_whole(page, studio):
    torn = next((studio.home / "runs").glob("*-torn-*"))
    page.goto("/runs/torn")
    page.get_by_text("State: interrupted").wait_for()
    with (torn / "events.jsonl").open("a") as f:
        f.write('ep", "step": 21, "tokens": 21000, "loss": 1.25, "lr": 0.1, "grad_norm": 1, "tokens_per_second": 1}\n')
    legend(page, "Loss, nats").get_by_text("training 1.25").wait_for()


def test_a_run_that_is_deleted_while_it_is_watched(page, studio):
    folder = made_runs.write_run(studio.home, "doomed", made_runs.training(10))
    page.goto("/runs/doomed")
    page.get_by_text("State: interrupted").wait_for()
    shutil.rmtree(folder)
    page.get_by_text("This run has been deleted.").wait_for()


@pytest.mark.parametrize(("name", "text"), [("from-the-future", "pip install --upgrade settle-lm"),
                                            ("half-deleted", "Nothing has been reported yet."),
                                            ("nobody", "there is no run named 'nobody'")])  # fmt: skip
def test_a_run_that_cannot_be_read_says_why(page, name, text):
    page.goto(f"/runs/{name}")
    page.get_by_text(text).first.wait_for()


def test_resuming_what_cannot_be_resumed_says_why(page, studio):
    folder = made_runs.write_run(studio.home, "lost", made_runs.training(5))  # it has neither plan nor recipe
    page.goto("/runs/lost")
    page.get_by_role("button", name="Resume").click()
    page.get_by_text("has neither plan.json nor recipe.toml").wait_for(timeout=3 * SECONDS * 1000)
    shutil.rmtree(folder)


def test_runs_are_compared_by_colour_and_dash_with_what_differs(page):
    page.goto("/compare")
    page.get_by_role("link", name="calm").click()
    page.get_by_text("Choose a second run").wait_for()
    page.get_by_role("link", name="rough").click()
    differ = page.get_by_role("table", name="Settings that differ")
    differ.get_by_text("optimizer.lr").wait_for()
    assert differ.locator("tbody tr").count() == 1 and "0.003" in differ.inner_text()
    curves = figure(page, "bits per byte").locator("path.curve")
    curves.nth(1).wait_for()
    looks = {(c.get_attribute("style"), c.get_attribute("stroke-dasharray")) for c in curves.all()}
    assert len({style for style, _ in looks}) == len({dash for _, dash in looks}) == 2
    figure(page, "bits per byte").get_by_role("combobox").select_option("energy")
    figure(page, "bits per byte").locator("> svg > text", has_text="Wh").first.wait_for()
    assert axe_findings(page) == []


def test_a_run_is_replayed(page):
    page.goto("/learning/calm")
    page.get_by_role("heading", name="Step 100").wait_for()
    page.get_by_text("5.500 nats: as unsure of each next token as between 245 equally likely ones").first.wait_for()
    page.get_by_text("qj xv").wait_for()
    page.get_by_text("3,000 such answers").wait_for()
    assert axe_findings(page) == []


def test_names_of_other_languages_and_long_ones_keep_their_place(page, studio):
    long = "a" * 64
    texts = ["Die Verlässlichkeitsprüfung der Donaudampfschifffahrtsgesellschaft", "学習は落ち着きました。" * 12]
    folder = made_runs.write_run(
        studio.home, long, [*made_runs.training(5), *(kinds.Say(text=text) for text in texts)],
        made_runs.FINISHED | {"why": " ".join(texts)},
    )  # fmt: skip
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(f"/runs/{long}")
    page.get_by_text("学習は").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    shutil.rmtree(folder)


def test_a_page_survives_that_the_studio_is_killed_and_started_again(browser, tmp_path):
    home = tmp_path / "home"
    made_runs.write_run(home, "calm", made_runs.training(10), made_runs.FINISHED)
    live = start_studio(home)
    port, address = live.address.rpartition(":")[2], live.address
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(live.link)
    tab.get_by_role("link", name="calm").wait_for()
    tab.wait_for_function("window.socket && window.socket.connected")  # the page is there before its socket is
    live.process.kill()
    live.process.wait()
    tab.get_by_text("Connection lost").wait_for()
    again = start_studio(home, "--port", port)
    assert again.address == address
    made_runs.write_run(home, "later", made_runs.training(3))
    tab.get_by_role("link", name="later").wait_for(timeout=3 * SECONDS * 1000)
    context.close()
    again.stop()


def test_a_browser_that_slept_loads_the_page_anew(page, studio):
    """As on a laptop that is closed: nothing in the page runs until it wakes."""
    page.goto("/runs/calm")
    legend(page, "Loss, nats").get_by_text("held-out 2").wait_for()
    page.evaluate("window.__before = true")
    session = page.context.new_cdp_session(page)
    session.send("Debugger.enable")
    session.send("Debugger.pause")
    time.sleep(14)  # longer than the studio keeps a page that does not answer
    session.send("Debugger.resume")
    page.wait_for_function("window.__before === undefined")
    legend(page, "Loss, nats").get_by_text("held-out 2").wait_for()


def test_a_run_of_the_first_versions_is_shown(page):
    page.goto("/runs/elder")
    page.get_by_text("State: settled").wait_for()
    page.get_by_text("it was long ago").wait_for()
    legend(page, "Loss, nats").get_by_text("held-out 2").wait_for()
    assert "training 2" in legend(page, "Loss, nats").inner_text()
    assert "memory –" in legend(page, "Memory, GB").inner_text()
    assert page.get_by_role("heading", name="Forecast and actual").count() == 0  # it has none


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB, with nothing left on it but for some kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root alone")
    try:
        made_runs.write_run(folder, "calm", made_runs.training(10), made_runs.FINISHED)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_on_a_full_disk_the_runs_are_shown_and_an_upload_says_what_is_missing(browser, small_disk, tmp_path):
    live = start_studio(small_disk)
    context = browser.new_context()
    context.set_default_timeout(SECONDS * 1000)
    tab = context.new_page()
    tab.goto(live.link)
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b"x" * 1_000_000)
    tab.goto(live.address + "/new?command=train")
    tab.locator("input[type=file]").set_input_files(rows)
    tab.get_by_text("rows.jsonl is larger than the 0 B that the disk has free").first.wait_for()
    cookie = "; ".join(f"{c['name']}={c['value']}" for c in context.cookies())
    answer = _upload_unannounced(live.address, cookie, b"x" * 65536, 20)
    assert "large is larger than the 0 B" in answer and not list((small_disk / "uploads").iterdir())
    (small_disk / "filler").write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
    tab.goto(live.address + "/runs/calm")
    tab.get_by_text("State: settled").wait_for()
    context.close()
    live.stop()


def _upload_unannounced(address: str, cookie: str, piece: bytes, times: int) -> str:
    """The answer to an upload that does not say beforehand how large it is."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=SECONDS)
    body = (piece for _ in range(times))
    connection.request("PUT", "/uploads?name=large", body, {"Cookie": cookie}, encode_chunked=True)
    answer = connection.getresponse().read().decode()
    connection.close()
    return answer


def test_two_studios_of_one_home(context, studio):
    """The second needs another port; a browser that was let in may use both."""
    port = studio.address.rpartition(":")[2]
    command = [sys.executable, "-m", "settle", "studio", "--no-browser", "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and f"port {port} is in use" in done.stderr and "--port" in done.stderr
    second = start_studio(studio.home)
    page = context.new_page()
    page.goto(second.address)
    page.get_by_role("link", name="calm").wait_for()
    page.close()
    second.stop()


@pytest.mark.slow
def test_a_real_run_is_watched_stopped_and_resumed_to_its_end(page, studio):
    docs = Path(__file__).parents[2] / "docs"
    command = [sys.executable, "-m", "settle", "train", str(docs), "--name", "real", "--size", "60k", "--threads", "1",
               "--steps", "450", "--sample", "The run"]  # fmt: skip
    own = os.environ | {"SETTLE_HOME": str(studio.home)}
    process = subprocess.Popen(command, env=own, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    page.set_default_timeout(4 * SECONDS * 1000)
    page.goto("/")
    page.get_by_role("link", name="real").click()
    page.get_by_text("stage: training").wait_for()
    page.get_by_text(re.compile(r"^\d+ W$")).wait_for()
    legend(page, "Memory, GB").get_by_text(re.compile(r"memory 0\.\d+")).wait_for()
    legend(page, "Power, W").get_by_text(re.compile(r"power \d+")).wait_for()
    page.get_by_role("button", name="Stop").click()
    assert process.wait(4 * SECONDS) == 130
    page.get_by_role("button", name="Resume").click()
    page.get_by_text("resuming from step").wait_for()
    page.get_by_text("State: steps used").wait_for()
    page.get_by_text("passed: the exported file is the model").wait_for()
    page.get_by_role("table", name="Files").get_by_text("card.md").wait_for()
    assert "inside" in page.get_by_role("table", name="Forecast and actual").inner_text()
    assert not page.get_by_role("button", name="Resume").is_visible()
    page.get_by_role("link", name="How it learned").click()
    page.get_by_text(re.compile(r"It was reading, from \S+\.md")).first.wait_for()
