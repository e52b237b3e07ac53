"""Three journeys through the studio in a real browser, as a person walks them, with the clicks that each takes.

    python bench/studio_journeys.py [--only train,ask,tune] [--ways mouse,keyboard] [--widths 1440,390]
                                    [--schemes light,dark] [--browsers chromium,firefox] [--pictures DIR]

- train: a folder of text → a trained model → an answer in chat → an exported file of it
- ask: a folder of documents → a collection → a question → the passage that the answer cites
- tune: a file of rows → a tuned model → compared with its base → exported for Ollama

Everything is real: the studio, the runs (of a minute, and of five for rows), llama.cpp and the browser. At
every state axe looks at the page, for what is minor, too; nothing may be wider than the screen, or be logged as an
error. By keyboard a control is reached by Tab alone, and a click is a control that was used. Prints a line a journey,
and exits with 1 where one did not end well.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, Playwright, sync_playwright
from playwright.sync_api import Error as PlaywrightError

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.studio.conftest import BROWSERS, LiveStudio, start_studio, watch  # noqa: E402

MOST_CLICKS = 8
MODEL = "smollm2"
RUN_SECONDS = 900  # that a run may take until its page shows the verdict, on a machine that is busy
MOST_TABS = 120
HEIGHTS = {390: 844}
FOCUSED = "e => e === document.activeElement"
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
THINGS = ("lamp", "kettle", "bicycle", "window", "garden", "drum", "harbour", "clock", "ladder", "candle")
PLACES = ("attic", "cellar", "market", "station", "library", "mill", "orchard", "chapel")
LEVER = "The red lever of the north gate opens the lock in ninety seconds."
QUESTION = "How long does the red lever take to open the lock?"


class Walk:
    """One journey on one page. way: "mouse" or "keyboard"; clicks: what was clicked, or would have been; keys: presses.

    faults: what axe, the console or the width of the page shows, by the state it was seen at.
    """

    def __init__(self, page: Page, way: str, name: str, pictures: Path | None) -> None:
        self.page, self.way, self.name, self.pictures = page, way, name, pictures
        self.clicks: list[str] = []
        self.keys = self.states = 0
        self.faults: list[str] = []
        self.seen = watch(page)

    def _key(self, key: str) -> None:
        self.page.keyboard.press(key)
        self.keys += 1

    def _reach(self, target: Locator) -> None:
        """Go to a control by Tab, from wherever the focus is."""
        for _ in range(MOST_TABS):
            if target.evaluate(FOCUSED):
                return
            self._key("Tab")
        raise AssertionError(f"{target} is not reached by Tab")

    def use(self, target: Locator, name: str, key: str = "Enter") -> None:
        """Click a button or a link, or press a key on it."""
        target.wait_for()
        self.clicks.append(name)
        if self.way == "mouse":
            target.click()
        else:
            self._reach(target)
            self._key(key)

    def write(self, target: Locator, text: str, name: str) -> None:
        """Type into a field, and press Enter. The click counts where the field has no focus yet."""
        target.wait_for()
        if not target.evaluate(FOCUSED):
            self.clicks.append(name)
            target.click() if self.way == "mouse" else self._reach(target)
        self.page.keyboard.type(text)
        self._key("Enter")

    def slide(self, slider: Locator, place: int, name: str) -> None:
        """Move a slider to a place, counted from 0."""
        slider.wait_for()
        self.clicks.append(name)
        if self.way == "mouse":
            box, most = slider.bounding_box() or {}, int(slider.get_attribute("max") or 1)
            slider.click(position={"x": 8 + place / most * (box["width"] - 16), "y": box["height"] / 2})
        else:
            self._reach(slider)
            for key in ("Home", *["ArrowRight"] * place):
                self._key(key)
        assert slider.input_value() == str(place)

    def back(self) -> None:
        """Go back as the browser does."""
        self.clicks.append("back")
        self.page.go_back()

    def state(self, name: str, page: Page | None = None) -> None:
        """Look at the page as it now is."""
        page, self.states = page or self.page, self.states + 1
        page.wait_for_timeout(300)
        found = Axe().run(page).response["violations"]
        self.faults += [f"{name}: {v['id']}: {node['html'][:150]}" for v in found for node in v["nodes"][:2]]
        if (wider := page.evaluate(WIDER)) > 0:
            self.faults.append(f"{name}: {wider} px wider than the screen")
        if self.pictures:
            page.screenshot(path=self.pictures / f"{self.name}-{self.states:02}-{name.replace(' ', '-')}.png")

    def choose_data(self, path: Path) -> None:
        """Name what to learn from, on the page of a new run."""
        self.state("first page")
        self.use(self.page.get_by_role("link", name="New run", exact=True).first, "New run")
        field = self.page.get_by_label("File or folder of this machine")
        field.wait_for()
        self.state("new run")
        self.write(field, str(path), "path")
        self.page.get_by_role("slider").wait_for()
        self.state("data and models")

    def start(self) -> None:
        """Start the run, and wait until its page shows the verdict."""
        page = self.page
        self.use(page.get_by_role("button", name="Start", exact=True), "Start")
        page.wait_for_url(re.compile("/runs/"))
        page.get_by_text("State: running").wait_for()
        self.state("run")
        page.get_by_text("State: running").wait_for(state="hidden", timeout=RUN_SECONDS * 1000)
        self.state("verdict")

    def answer(self, text: str) -> None:
        """Write a message, and wait for all that is answered."""
        field = self.page.get_by_label("Message", exact=True)
        field.wait_for()
        self.state("chat")
        self.write(field, text, "message")
        self.page.get_by_role("button", name="Stop").wait_for()
        self.page.get_by_role("button", name="Stop").wait_for(state="hidden", timeout=300_000)
        self.state("answer")

    def export(self, button: str) -> Path:
        """Export what the run made; return the file or folder."""
        self.use(self.page.get_by_role("button", name=button, exact=True), button)
        write = self.page.get_by_role("button", name="Write it")
        write.wait_for()
        self.state("export")
        self.use(write, "Write it")
        self.page.get_by_text("Next, in a terminal:").wait_for(timeout=300_000)
        self.state("exported")
        return Path(self.page.locator("dt", has_text="written").locator("xpath=following-sibling::dd[1]").inner_text())


def train(walk: Walk, material: Path) -> None:
    walk.choose_data(material / "notes")
    walk.slide(walk.page.get_by_role("slider"), 0, "time")
    walk.start()
    walk.use(walk.page.locator("a.act", has_text="Chat"), "Chat")
    walk.answer("The")
    walk.back()
    written = walk.export("Export")
    assert written.exists(), written


def ask(walk: Walk, material: Path) -> None:
    page = walk.page
    walk.state("first page")
    walk.use(page.get_by_role("link", name="Documents", exact=True), "Documents")
    first = page.get_by_role("link", name="Index a folder")
    first.wait_for()
    walk.state("no documents")
    walk.use(first, "Index a folder")
    field = page.get_by_label("File or folder of this machine")
    page.get_by_label("paths", exact=True).wait_for()
    walk.state("index")
    walk.write(field, str(material / "documents"), "path")
    walk.use(page.get_by_role("button", name="Start", exact=True), "Start")
    see = page.get_by_role("link", name="See the documents")
    see.wait_for()
    walk.state("indexing")
    walk.use(see, "See the documents")
    question = page.get_by_label("Question")
    question.wait_for()
    walk.state("collections")
    walk.write(question, QUESTION, "question")
    page.locator(".sentence a").first.wait_for(timeout=300_000)
    walk.state("cited answer")
    with page.context.expect_page() as opened:
        walk.use(page.locator(".sentence a").first, "citation")
    passage = opened.value
    passage.locator("mark").first.wait_for()
    walk.state("passage", passage)
    assert "red lever" in " ".join(passage.locator("mark").all_inner_texts())
    passage.close()


def tune(walk: Walk, material: Path) -> None:
    page = walk.page
    walk.choose_data(material / "rows.jsonl")
    walk.slide(page.get_by_role("slider"), 2, "time")  # a shorter one leaves no time to compare
    walk.start()
    page.get_by_text(re.compile("better", re.IGNORECASE)).first.wait_for()
    walk.use(page.get_by_role("link", name=re.compile("^Compare with")), "Compare")
    walk.answer("Where is the lamp of house 99?")
    walk.back()
    assert walk.export("Export").exists()


JOURNEYS: dict[str, Callable[[Walk, Path], None]] = {"train": train, "ask": ask, "tune": tune}


def make_material(folder: Path) -> None:
    """Write a folder of text, one of documents, and a file of rows with a rule that can be learned."""
    notes, documents = folder / "notes", folder / "documents"
    for path in (notes, documents):
        path.mkdir()
    for n, thing in enumerate(THINGS):
        stories = (
            f"The {thing} stood in the {PLACES[(n + k) % 8]}. On day {k} someone moved the {thing} to the "
            f"{PLACES[(n + 3 * k) % 8]}, and {THINGS[(n + k) % 10]} and {thing} were seen together.\n"
            for k in range(400)
        )
        (notes / f"{thing}.txt").write_text("".join(stories))
        (documents / f"{thing}.md").write_text(
            f"# The {thing}\n\nThe {thing} is kept in the {PLACES[n % 8]}. It was made {n + 3} years ago.\n"
        )
    (documents / "gate.md").write_text(f"# The gate\n\nThe gate is north of the town.\n\n{LEVER}\n")
    rows = (
        {"prompt": f"Where is the {thing} of house {k}?", "completion": f"Look in the {PLACES[n % 8]} of house {k}."}
        for k in range(40)
        for n, thing in enumerate(THINGS)
    )
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@contextlib.contextmanager
def studio_with(home: Path, out: Path) -> Iterator[LiveStudio]:
    """Start a studio that writes what it exports in `out`."""
    with contextlib.chdir(out):
        live = start_studio(home, PYTHONPATH=str(ROOT))
    try:
        yield live
    finally:
        live.stop()


def walk_once(browser: Browser, name: str, way: str, width: int, scheme: str, asked: argparse.Namespace) -> bool:
    """One journey with a home of its own; print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        home, material, out = (Path(folder) / part for part in ("home", "material", "out"))
        for path in (home, material, out):
            path.mkdir()
        make_material(material)
        if name == "tune":
            shutil.copytree(asked.models, home / "models")
        with studio_with(home, out) as live:
            context = browser.new_context(
                base_url=live.address,
                viewport={"width": width, "height": HEIGHTS.get(width, 900)},
                color_scheme=scheme,
                accept_downloads=True,
            )
            context.set_default_timeout(90_000)
            page = context.new_page()
            walk = Walk(page, way, f"{browser.browser_type.name}-{name}-{way}-{width}-{scheme}", asked.pictures)
            began, end = time.monotonic(), "reached"
            try:
                page.goto(live.link)
                page.wait_for_url(live.address + "/")
                JOURNEYS[name](walk, material)
            except (PlaywrightError, AssertionError):  # the other journeys are walked all the same
                end = f"MISSED at {walk.page.url}"
                traceback.print_exc()
                if asked.pictures:
                    page.screenshot(path=asked.pictures / f"{walk.name}-missed.png")
            context.close()
    faults = [*walk.faults, *(f"console: {text}" for text in walk.seen.errors)]
    keys = f", {walk.keys} keys" if way == "keyboard" else ""
    is_met = end == "reached" and len(walk.clicks) <= MOST_CLICKS and not faults
    print(f"{walk.name}: {end}, {len(walk.clicks)} clicks{keys} (bar {MOST_CLICKS}: {', '.join(walk.clicks)}), "
          f"{walk.states} states, {len(faults)} faults, {time.monotonic() - began:.0f} s: "
          f"{'met' if is_met else 'MISSED'}", flush=True)  # fmt: skip
    for fault in dict.fromkeys(faults):
        print(f"    {fault}", flush=True)
    return is_met


def launch(p: Playwright, name: str, path: str | None) -> Browser:
    if name == "firefox":
        return p.firefox.launch(channel="moz-firefox", executable_path=path or shutil.which("firefox"))
    found = path or next(filter(None, map(shutil.which, BROWSERS)))
    return p.chromium.launch(executable_path=found, args=["--no-sandbox"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for option, usual in (("only", "train,ask,tune"), ("ways", "mouse,keyboard"), ("widths", "1440,390"),
                          ("schemes", "light,dark"), ("browsers", "chromium")):  # fmt: skip
        parser.add_argument(f"--{option}", type=lambda text: text.split(","), default=usual.split(","))
    parser.add_argument("--pictures", type=Path, help="a folder that gets a picture of every state")
    parser.add_argument("--browser-path", help="where the browser is, if it is not on the PATH")
    asked = parser.parse_args()
    if asked.pictures:
        asked.pictures.mkdir(parents=True, exist_ok=True)
    is_met = []
    with tempfile.TemporaryDirectory() as shared, sync_playwright() as p:
        asked.models = Path(shared) / "models"
        if "tune" in asked.only:
            pull = [sys.executable, "-m", "settle", "pull", MODEL]
            subprocess.run(pull, env={**os.environ, "SETTLE_HOME": shared}, check=True, capture_output=True)
        for browser_name in asked.browsers:
            browser = launch(p, browser_name, asked.browser_path)
            print(f"{browser_name} {browser.version}", flush=True)
            for name in asked.only:
                for way in asked.ways:
                    for width in map(int, asked.widths):
                        is_met += [walk_once(browser, name, way, width, scheme, asked) for scheme in asked.schemes]
            browser.close()
    sys.exit(not all(is_met))


if __name__ == "__main__":
    main()
