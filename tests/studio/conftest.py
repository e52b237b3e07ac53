"""A studio in a process of its own, and a real browser that looks at it.

`page` is a tab; when its test ends, it must have asked no other address for anything and have logged no error.
"""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from settle.audit.ledger import read_sessions
from tests.studio import made_runs

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
LINK = re.compile(r"http://\S+/enter\?token=\S+")
COMMAND = 240_000  # ms that a command may take whose result a page shows, on a machine that is busy
SECONDS = 90.0  # for the studio to start, and for a page to show what a test waits for


@dataclasses.dataclass
class LiveStudio:
    """A studio that runs. lines: what it wrote on stderr so far."""

    process: subprocess.Popen[str]
    home: Path
    lines: list[str]

    @property
    def link(self) -> str:
        """The latest one-time link."""
        return LINK.findall("".join(self.lines))[-1]

    @property
    def address(self) -> str:
        parts = urlsplit(self.link)
        return f"{parts.scheme}://{parts.netloc}"

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.wait(SECONDS)


def start_studio(home: Path, *options: str, **environment: str) -> LiveStudio:
    """The command as a person starts it, on a free port."""
    port = [] if "--port" in options else ["--port", "0"]
    browser = [] if "BROWSER" in environment else ["--no-browser"]
    command = [sys.executable, "-m", "settle", "studio", *browser, *port, *options]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"SETTLE_HOME": str(home)} | environment,
    )
    lines: list[str] = []
    ready = threading.Event()

    def read() -> None:
        assert process.stderr
        with process.stderr:
            for line in process.stderr:
                lines.append(line)
                if "Ctrl-C" in line:
                    ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    assert ready.wait(SECONDS) and process.poll() is None, "".join(lines)
    return LiveStudio(process, home, lines)


@pytest.fixture(scope="session")
def studio() -> Iterator[LiveStudio]:
    """One for all flows; a test that stops or disturbs it starts its own."""
    pytest.importorskip("nicegui", reason="needs the extra `studio`")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        made_runs.fill(home)
        yield from running_studio(home)


def running_studio(home: Path, **environment: str) -> Iterator[LiveStudio]:
    """A studio until the tests have used it: it must have reached nothing beyond this machine."""
    live = start_studio(home, **environment)
    yield live
    live.stop()
    assert "Traceback" not in "".join(live.lines)
    reached = read_sessions((home / "ledgers").glob("*.jsonl"))
    assert not reached.beyond and not reached.listens  # of the studio, and of all that it started


@pytest.fixture(scope="module")
def browser():
    """A real Chromium without a window. Not for the whole session: while it lives, its loop runs in this thread, and
    tests of other rooms start loops of their own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("there is no Chromium here; it is the apt package `chromium`")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def context(browser, studio):
    """The browser's profile, let in by the one-time link."""
    context = browser.new_context(base_url=studio.address)
    context.set_default_timeout(SECONDS * 1000)
    page = context.new_page()
    page.goto(studio.link)
    page.wait_for_url(studio.address + "/")
    page.close()
    yield context
    context.close()


@dataclasses.dataclass
class Watched:
    """What a tab asked for, and the errors that it logged."""

    urls: list[str] = dataclasses.field(default_factory=list)
    errors: list[str] = dataclasses.field(default_factory=list)
    allowed: str = "\0"  # a part of the errors that a test expects


def watch(page) -> Watched:
    seen = Watched()
    page.on("request", lambda request: seen.urls.append(request.url))
    page.on("websocket", lambda socket: seen.urls.append(socket.url))
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
    return seen


def assert_kept_to_itself(seen: Watched, address: str) -> None:
    """No request to another address, no error."""
    hosts = {urlsplit(url).netloc for url in seen.urls if urlsplit(url).scheme not in ("data", "blob")}
    assert hosts <= {urlsplit(address).netloc}
    assert not [text for text in seen.errors if seen.allowed not in text]


@pytest.fixture
def page(context, studio):
    """A tab. `page.seen.allowed`: an error that the test expects."""
    page = context.new_page()
    page.seen = watch(page)
    yield page
    page.close()
    assert page.seen.urls
    assert_kept_to_itself(page.seen, studio.address)


def axe_findings(page) -> list[str]:
    """What axe finds that is serious or critical."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    found = axe.run(page).response["violations"]
    return [
        f"{v['id']}: {node['html'][:120]}"
        for v in found
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"]
    ]
