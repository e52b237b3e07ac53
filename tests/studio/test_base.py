"""The frame of every page, in a real browser: who is let in, the keyboard, small screens, light and dark."""

import socket
import sys
import time
import urllib.error
import urllib.request

import pytest

from settle.studio.guard import COOKIE, COOKIE_SECONDS, StudioGuard
from settle.studio.pages import Page
from tests.server.conftest import until
from tests.studio.conftest import axe_findings, start_studio, watch

PATHS = sorted(page.path for page in Page.parts().values() if "{" not in page.path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_has_no_serious_barrier(page, path, scheme):
    page.emulate_media(color_scheme=scheme)
    page.goto(path)
    page.get_by_role("heading", level=1).wait_for()
    assert page.title().endswith("settle studio")
    assert axe_findings(page) == []


@pytest.mark.parametrize("path", PATHS)
def test_a_page_fits_a_phone(page, path):
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(path)
    page.get_by_role("heading", level=1).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_keyboard_reaches_the_content_and_every_link(page):
    page.goto("/")
    page.get_by_role("link", name="calm").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    inside = "document.activeElement.closest('.content') !== null"
    assert page.evaluate(inside)
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"


CONTROLS = """() => [...document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex="0"]')]
    .filter((e) => e.checkVisibility() && !e.disabled)"""
FOLLOW = """() => {
    window.__stops = [];
    const outlined = (e) => getComputedStyle(e).outlineStyle !== "none";
    document.addEventListener("focusin", (event) => window.__stops.push([event.target, outlined(event.target)]));
}"""


@pytest.mark.parametrize("path", [*PATHS, "/runs/calm"])
def test_tab_goes_through_a_whole_page_in_its_order(page, path):
    page.goto(path)
    page.get_by_role("heading", level=1).wait_for()
    page.wait_for_function("window.socket && window.socket.connected")
    if path == "/models":  # what fits comes later
        page.get_by_role("table", name="Models that fit").get_by_role("button", name="Look up").first.wait_for()
    if path == "/new":  # it begins in its first field: here everything is walked, from the top
        page.wait_for_function("document.activeElement !== document.body")
        page.evaluate("document.activeElement.blur(); document.body.tabIndex = -1; document.body.focus()")
    page.evaluate(FOLLOW)
    for _ in range(page.evaluate(f"({CONTROLS})().length")):
        page.keyboard.press("Tab")
    missed = page.evaluate(f"""() => {{
        const stops = window.__stops.map(([element]) => element);
        const hidden = window.__stops.filter(([, outlined]) => !outlined).map(([element]) => element);
        const passed = ({CONTROLS})().filter((element) => !stops.includes(element));
        const isBefore = (one, other) => one.compareDocumentPosition(other) & 2 && !one.contains(other);
        const back = stops.filter((element, at) => at && isBefore(stops[at - 1], element));
        return [passed, hidden, back].map((elements) => elements.map((element) => element.outerHTML.slice(0, 120)));
    }}""")
    assert missed == [[], [], []]  # never reached; focused without a sign of it; before the one that was reached before


def test_a_form_is_filled_and_sent_by_the_keyboard_alone(page):
    page.goto("/new?command=distill")
    page.get_by_label("teacher", exact=True).wait_for()
    page.wait_for_function("window.socket && window.socket.connected")

    def tab_to(target) -> None:
        for _ in range(200):
            if target.evaluate("(element) => element === document.activeElement"):
                return
            page.keyboard.press("Tab")
        raise AssertionError("Tab never reached it")

    for label in ("teacher", "inputs"):
        tab_to(page.get_by_label(label, exact=True))
        page.keyboard.type(f"my {label}")
    more = page.locator("summary", has_text="More settings")
    tab_to(more)
    page.keyboard.press("Enter")
    choice = page.locator("details[open] select").first
    tab_to(choice)
    page.keyboard.press("ArrowDown")
    switch = page.locator("details[open] input[type=checkbox]").first
    tab_to(switch)
    page.keyboard.press("Space")
    tab_to(page.get_by_role("button", name="Start"))
    flag = choice.get_attribute("id")
    name = page.locator(f"label[for={flag}]").inner_text()
    page.locator(".commandline", has_text=f"--{name} {choice.input_value()}").wait_for(state="attached")
    assert switch.is_checked() != (switch.get_attribute("checked") is not None)
    page.keyboard.press("Enter")
    page.get_by_role("alert").filter(has_text="There is no student").wait_for()


def test_an_unknown_page_says_so(page):
    page.seen.allowed = "404"
    assert page.goto("/nowhere").status == 404
    page.get_by_text("choose a page above").wait_for()
    page.get_by_role("link", name="Runs", exact=True).click()
    page.get_by_role("heading", name="Runs").wait_for()


def test_a_browser_without_the_cookie_sees_nothing(browser, studio):
    context = browser.new_context()
    tab = context.new_page()
    watch(tab)
    for path in ("/", "/socket.io/", "/_nicegui_ws/socket.io/?EIO=4&transport=polling"):
        assert tab.goto(studio.address + path).status == 401
    assert "This browser has no key." in tab.content() and "calm" not in tab.content()
    context.close()


def test_a_link_lets_in_once(browser, studio):
    link = studio.link
    first, second = browser.new_context(), browser.new_context()
    tab = first.new_page()
    tab.goto(link)
    tab.get_by_role("heading", name="Runs").wait_for()
    assert second.new_page().goto(link).status == 401
    assert studio.link != link
    first.close()
    second.close()


def test_a_look_ahead_does_not_spend_the_link(studio):
    link = studio.link
    asked = urllib.request.Request(link, method="HEAD")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(asked, timeout=10)
    assert studio.link == link


BROWSER = """import os, re, sys, urllib.request
page = sys.argv[1].removeprefix("file://")  # it is gone once its link is used
link, mode = re.search('url=([^"]+)', open(page).read())[1], oct(os.stat(page).st_mode)
with urllib.request.urlopen(link, timeout=60) as answer:
    print(sys.argv[1], mode, answer.status, file=open(os.environ["SEEN"], "w"))
"""


def test_the_browser_is_started_with_a_page_that_nobody_else_can_read(tmp_path):
    """The line that starts it is seen by every user of the machine. A browser of the terminal waits for its answer."""
    pytest.importorskip("nicegui", reason="needs the extra `studio`")
    seen, script = tmp_path / "seen", tmp_path / "browser.py"
    script.write_text(BROWSER)
    live = start_studio(tmp_path / "home", BROWSER=f"{sys.executable} {script} %s", SEEN=str(seen))
    try:
        assert until(lambda: seen.exists() and seen.read_text().endswith("\n"))
        page, mode, status = seen.read_text().split()
        assert page.startswith("file://") and "token" not in page
        assert (mode, status) == ("0o100600", "200")
        assert until(lambda: "another browser" in "".join(live.lines))
        assert not list((tmp_path / "home/server").glob("*.html"))
    finally:
        live.stop()


def test_a_cookie_ends_on_the_server_too(studio):
    guard = StudioGuard(None, (studio.home / "server/key").read_text().strip())  # type: ignore[arg-type]
    now = int(time.time())

    def status(value: str) -> int:
        return _status(studio.address, "/models", {"Cookie": f"{COOKIE}={value}"})

    assert status(guard.cookie(now)) == status(guard.cookie(now - COOKIE_SECONDS + 600)) == 200
    assert status(guard.cookie(now - COOKIE_SECONDS - 1)) == 401
    _, signature = guard.cookie(now - COOKIE_SECONDS - 1).split(".")
    assert {status(f"{now}.{signature}"), status(signature), status(f"-1.{signature}"), status("")} == {401}


def _status(address: str, path: str, headers: dict[str, str]) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, headers=headers), timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as e:
        return e.code


def _cookie(context) -> str:
    return "; ".join(f"{c['name']}={c['value']}" for c in context.cookies())


FOREIGN = {
    "host": {"Host": "evil.example"},
    "rebinding": {"Host": "127.0.0.1.evil.example"},
    "origin": {"Origin": "http://evil.example"},
    "another port": {"Origin": "http://127.0.0.1:1"},
    "null origin": {"Origin": "null"},
    "secure origin": {"Origin": "https://127.0.0.1"},
    "cross-site": {"Sec-Fetch-Site": "cross-site"},
    "same-site": {"Sec-Fetch-Site": "same-site"},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_requests_are_refused_also_with_the_cookie(context, studio, kind):
    cookie = {"Cookie": _cookie(context)}
    assert _status(studio.address, "/", cookie) == 200
    assert _status(studio.address, "/", cookie | FOREIGN[kind]) == 403
    assert _websocket(studio, cookie | FOREIGN[kind]).startswith("HTTP/1.1 403")


def test_a_websocket_needs_the_cookie(context, studio):
    assert _websocket(studio, {}).startswith("HTTP/1.1 403")
    own = {"Origin": studio.address, "Cookie": _cookie(context)}
    assert _websocket(studio, own).startswith("HTTP/1.1 101")


def _websocket(studio, headers: dict[str, str]) -> str:
    """The status line that a WebSocket is answered with."""
    host, port = studio.address.removeprefix("http://").split(":")
    lines = {
        "Host": f"{host}:{port}", "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", **headers,
    }  # fmt: skip
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        path = "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
        connection.sendall(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode())
        return connection.recv(200).splitlines()[0].decode()
