"""The studio against the bars of its issue, in a real Chromium.

    python bench/studio.py [--tabs 200] [--steps 100000] [--seconds 30] [--soak 120]

Prints a figure a line, with its bar. Times depend on what else the machine does: its load is printed with them.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from settle.base import events as kinds  # noqa: E402
from settle.base.event_log import Events  # noqa: E402
from settle.base.run import Run  # noqa: E402
from tests.studio import made_runs  # noqa: E402
from tests.studio.conftest import BROWSERS, LiveStudio, start_studio  # noqa: E402

SOAKED = ("/runs/soak", "/compare?runs=soak,calm", "/", "/new?command=train", "/models")
LEGEND = "document.querySelector('.legend li')?.innerText"
POINTS = "[...document.querySelectorAll('path.curve')].map(p => (p.getAttribute('d') || '').split('L').length)"


def resident(live: LiveStudio) -> float:
    """MB of the studio's process."""
    return psutil.Process(live.process.pid).memory_info().rss / 1e6


def say(what: str, figure: float, bar: float, unit: str) -> None:
    load = os.getloadavg()[0]
    print(
        f"{what}: {figure:.4g} {unit} (bar {bar:g}, {'met' if figure <= bar else 'MISSED'}; load {load:.1f})",
        flush=True,
    )


def received(page: Page) -> list[int]:
    """Bytes that the tab receives from now on: of responses as they were sent, and of WebSocket messages."""
    sizes: list[int] = []
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.on("Network.loadingFinished", lambda event: sizes.append(int(event["encodedDataLength"])))
    session.on("Network.webSocketFrameReceived", lambda event: sizes.append(len(event["response"]["payloadData"])))
    return sizes


def let_in(browser: Browser, live: LiveStudio) -> BrowserContext:
    context = browser.new_context(base_url=live.address)
    context.set_default_timeout(120_000)
    page = context.new_page()
    page.goto(live.link)
    page.wait_for_url(live.address + "/")
    page.close()
    return context


def first_page(browser: Browser, live: LiveStudio, rounds: int = 7) -> None:
    """Measure the first page with an empty cache, after an empty page that takes what the browser itself does."""
    cookies = let_in(browser, live).cookies()
    seconds, transfers, empty = [], [], []
    for _ in range(rounds):
        context = browser.new_context(base_url=live.address)
        context.add_cookies(cookies)
        page = context.new_page()
        sizes = received(page)
        began = time.monotonic()
        page.goto("data:text/html,<p>nothing</p>")
        empty.append(time.monotonic() - began)
        began = time.monotonic()
        page.goto("/")
        page.get_by_role("link", name="calm").wait_for()
        seconds.append(time.monotonic() - began)
        page.wait_for_timeout(300)
        transfers.append(sum(sizes))
        context.close()
    say("first page, median", statistics.median(seconds), 2.5, "s")
    print(f"first page, {min(seconds):.2f} to {max(seconds):.2f} s; an empty page {statistics.median(empty):.2f} s")
    say("first page, transfer", max(transfers) / 1e6, 1.0, "MB")


def event_to_seen(context: BrowserContext, live: LiveStudio, rounds: int) -> None:
    folder = made_runs.write_run(live.home, "seen", made_runs.training(40))
    log, delays = Events(folder / "events.jsonl"), []
    with Run(folder).lock():
        page = context.new_page()
        page.goto("/runs/seen")
        page.get_by_text("State: running").wait_for()
        for n in range(rounds):
            value = 1 + n / 1000
            time.sleep(random.uniform(0, 1))  # at any moment between two looks of the page
            log.emit(kinds.Eval(step=50 + n, tokens=50_000 + n, loss=value, stderr=0.0))
            began = time.monotonic()
            page.wait_for_function(f"{LEGEND}.includes('held-out {value:g}')", polling=20)
            delays.append(time.monotonic() - began)
        page.close()
    log.close()
    say("event written until seen, median", statistics.median(delays), 1.0, "s")
    say("event written until seen, p95", sorted(delays)[round(0.95 * (len(delays) - 1))], 1.0, "s")


def long_run(context: BrowserContext, live: LiveStudio, steps: int, seconds: float) -> None:
    folder = made_runs.write_run(live.home, "long", made_runs.training(steps, spike=steps // 2))
    process, log = psutil.Process(live.process.pid), Events(folder / "events.jsonl")
    with Run(folder).lock():
        page, before = context.new_page(), resident(live)
        sizes, began = received(page), time.monotonic()
        page.goto("/runs/long")
        page.wait_for_function(f"{LEGEND}?.includes('held-out 2')", polling=50)
        print(f"{steps:,} steps, {(folder / 'events.jsonl').stat().st_size / 1e6:.1f} MB: shown after "
              f"{time.monotonic() - began:.1f} s, {resident(live) - before:+.1f} MB", flush=True)  # fmt: skip
        page.wait_for_timeout(2000)
        first, spent, began = sum(sizes), sum(process.cpu_times()[:2]), time.monotonic()
        step = steps
        while time.monotonic() - began < seconds:
            step += 1
            log.emit(kinds.Step(step=step, tokens=step * 1000, loss=2.2, lr=1e-3, tokens_per_second=2000.0))
            page.wait_for_timeout(100)
        took = time.monotonic() - began
        say("long run, received", (sum(sizes) - first) / took / 1e3, 5.0, "kB/s")
        say("long run, the studio's processor time", 100 * (sum(process.cpu_times()[:2]) - spent) / took, 2.0, "%")
        say("long run, points of the longest curve", max(page.evaluate(POINTS)), 1000, "points")
        tallest = max(float(t) for t in page.locator("figure.chart g text").all_text_contents() if "k" not in t)
        print(f"long run, the spike of 9.9 is on the curve: {tallest >= 8}", flush=True)
        page.close()
    log.close()
    shutil.rmtree(folder)


def many_tabs(context: BrowserContext, live: LiveStudio, tabs: int) -> None:
    def open_and_close(number: int) -> None:
        for n in range(number):
            page = context.new_page()
            page.goto(("/runs/calm", "/", "/compare?runs=calm,rough")[n % 3])
            page.get_by_role("link", name="calm").or_(page.get_by_text("State:")).first.wait_for()
            page.close()

    open_and_close(30)
    time.sleep(20)  # the studio forgets a tab some seconds after it was closed
    before = resident(live)
    open_and_close(tabs)
    time.sleep(20)
    say(f"{tabs} tabs opened and closed", resident(live) - before, 10.0, "MB more")


def large_upload(context: BrowserContext, live: LiveStudio, gigabytes: float) -> None:
    """Drop a large file on a form; measure how long until it is stored, and the studio's memory meanwhile."""
    process, file = psutil.Process(live.process.pid), live.home / "large.bin"
    with file.open("wb") as made:
        made.truncate(round(gigabytes * 1e9))
    page = context.new_page()
    page.goto("/new?command=train")
    page.get_by_text("settle train").first.wait_for()
    before, most, spent, began = resident(live), 0.0, sum(process.cpu_times()[:2]), time.monotonic()
    page.locator("input[type=file]").set_input_files(file)
    stored = page.get_by_text("large.bin is stored")
    while not stored.count():
        most = max(most, resident(live))
        page.wait_for_timeout(50)
    took = time.monotonic() - began
    assert (live.home / "uploads/large.bin").stat().st_size == file.stat().st_size
    print(f"upload of {gigabytes:g} GB: {took:.1f} s, {sum(process.cpu_times()[:2]) - spent:.1f} s of processor time, "
          f"load {os.getloadavg()[0]:.1f}", flush=True)  # fmt: skip
    say("upload, most memory beside what there was", most - before, 20.0, "MB")
    page.close()
    file.unlink()
    (live.home / "uploads/large.bin").unlink()


def soak(context: BrowserContext, live: LiveStudio, minutes: float) -> None:
    """Five tabs stay open, on a run that grows, a comparison, the list and two forms: memory and processor time."""
    folder = made_runs.write_run(live.home, "soak", made_runs.training(40))
    process, log, step = psutil.Process(live.process.pid), Events(folder / "events.jsonl"), 40
    with Run(folder).lock():
        pages = [context.new_page() for _ in SOAKED]
        for page, path in zip(pages, SOAKED, strict=True):
            page.goto(path)
            page.get_by_role("heading", level=1).wait_for()
        time.sleep(20)
        first, most, spent, began, shown = resident(live), 0.0, sum(process.cpu_times()[:2]), time.monotonic(), 0.0
        while (passed := time.monotonic() - began) < minutes * 60:
            step += 1
            log.emit(kinds.Step(step=step, tokens=step * 1000, loss=2.2, lr=1e-3, tokens_per_second=2000.0))
            log.emit(kinds.Eval(step=step, tokens=step * 1000, loss=1 + step / 1e6, stderr=0.01))
            pages[0].wait_for_timeout(1000)
            most = max(most, resident(live))
            if passed - shown > 600:
                shown = passed
                share = 100 * (sum(process.cpu_times()[:2]) - spent) / passed
                print(f"after {passed / 60:.0f} min: {resident(live) - first:+.1f} MB, {share:.2f} % of a core, load "
                      f"{os.getloadavg()[0]:.1f}", flush=True)  # fmt: skip
        pages[0].wait_for_function(f"{LEGEND}.includes('held-out {1 + step / 1e6:.4g}')", polling=20)  # still live
    say(f"{len(pages)} tabs open for {minutes:g} min", most - first, 10.0, "MB more at most")
    log.close()


def lines(pattern: str, is_code: Callable[[str], bool]) -> int:
    files: Iterator[Path] = (ROOT / "settle/studio").rglob(pattern)
    return sum(is_code(line) for path in files for line in path.read_text(encoding="utf-8").splitlines())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tabs", type=int, default=200)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--upload", type=float, default=2.0, help="GB; 0: none")
    parser.add_argument("--only-upload", action="store_true")
    parser.add_argument("--soak", type=float, default=0.0, help="minutes that tabs stay open, and nothing else")
    asked = parser.parse_args()
    path = next(filter(None, map(shutil.which, BROWSERS)))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        made_runs.fill(Path(folder))
        live = start_studio(Path(folder))
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        if asked.only_upload or asked.soak:
            context = let_in(browser, live)
            soak(context, live, asked.soak) if asked.soak else large_upload(context, live, asked.upload)
            browser.close()
            live.stop()
            return
        first_page(browser, live)
        say("memory after it", resident(live), 120, "MB")
        context = let_in(browser, live)
        event_to_seen(context, live, asked.rounds)
        long_run(context, live, asked.steps, asked.seconds)
        many_tabs(context, live, asked.tabs)
        if asked.upload:
            large_upload(context, live, asked.upload)
        say("memory at the end", resident(live), 120, "MB")
        browser.close()
        live.stop()
    say("Python", lines("*.py", bool), 1500, "lines")
    say("JavaScript", lines("*.js", bool), 600, "lines")
    print(json.dumps({"cores": os.cpu_count(), "chromium": path}))


if __name__ == "__main__":
    main()
