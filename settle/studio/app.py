"""The studio's server: every page behind the guard, on the loopback, until the person stops it."""

import logging
import os
import threading
import warnings
import webbrowser
from collections.abc import Callable, Mapping
from pathlib import Path

from fastapi import FastAPI, Request
from nicegui import app as nicegui_app
from nicegui import ui

from settle.audit.door import is_open_in_empty_network, listen
from settle.base.errors import SettleError, UsageError
from settle.base.event_log import Events
from settle.base.events import ResultReady, Say
from settle.base.files import home
from settle.base.registry import Part
from settle.base.server_state import server_key
from settle.base.version import __version__
from settle.server.http_server import run
from settle.studio.guard import StudioGuard
from settle.studio.layout import Way, failure, frame
from settle.studio.pages import Page
from settle.studio.visit import Studio, Visit

HOST = "127.0.0.1"
LEADS_ON = """<!doctype html><html lang="en"><title>settle studio</title><meta http-equiv="refresh" content="0;url=%s">
<a href="%s">settle studio</a></html>"""
BUILD_SECONDS = 30.0  # that a page may take before it answers
SLEEP_SECONDS = 5.0  # without a browser until its page is forgotten; one that returns later loads it anew


def serve(port: int, opens_browser: bool, commands: Callable[[], Mapping[str, type[Part]]], events: Events) -> None:
    """Serve until the process is stopped. commands: their registry. Raises UsageError."""
    key = server_key()
    assert key is not None
    is_offline = is_open_in_empty_network(HOST, port)
    listening = listen(HOST, port)
    address = f"http://{HOST}:{listening.getsockname()[1]}"
    entry = home() / "server" / f"studio-{os.getpid()}.html"

    def on_entry() -> None:
        entry.unlink(missing_ok=True)
        _show_link(events, address, guard, "another browser")

    guard = StudioGuard(build_app(Studio(commands)), key, on_entry)

    def on_ready() -> None:
        _show_link(events, address, guard, "a browser")
        events.emit(Say(text="Ctrl-C stops the studio; runs that it started continue"))
        if opens_browser and not is_offline:
            _open_browser(entry, address + guard.link)

    try:
        run(guard, listening, on_ready, websockets=True)
    finally:
        listening.close()
        entry.unlink(missing_ok=True)
    events.emit(Say(text="stopped"))
    events.emit(ResultReady(result={"address": address, "stopped": True}))


def build_app(studio: Studio) -> FastAPI:
    """Every page of the family, and what they load; once a process."""
    logging.getLogger("nicegui").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="nicegui")  # it touches every object, also torch's
    pages = {name: page() for name, page in Page.parts().items()}
    in_order = sorted((p for p in pages.values() if p.place is not None), key=lambda page: page.place or 0)
    ways = [Way(page.title, page.path, page.is_door) for page in in_order]
    for page in pages.values():
        _register(page, ways, studio)
    style = nicegui_app.add_static_file(local_file=Path(__file__).parent / "studio.css", max_cache_age=3600)
    ui.add_head_html(f'<link rel="stylesheet" href="{style}?{__version__}">', shared=True)

    async def missing() -> None:
        ui.context.client.status_code = 404
        with frame("There is no such page", ways, ""):
            failure(UsageError("nothing is found at this address", "choose a page above"))

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    ui.run_with(
        app,
        root=missing,
        title="settle studio",
        favicon="⚖",
        dark=None,  # as the person's system is
        language="en-US",
        tailwind=False,
        reconnect_timeout=SLEEP_SECONDS,
        show_welcome_message=False,
    )
    return app


def _register(page: Page, ways: list[Way], studio: Studio) -> None:
    async def show(request: Request) -> None:
        path: Mapping[str, str] = request.path_params
        visit = Visit(studio, path, dict(request.query_params))
        with frame(page.title.format_map(path), ways, page.within or page.path):
            try:
                await page.build(visit)
            except SettleError as e:
                failure(e)

    ui.page(page.path, response_timeout=BUILD_SECONDS)(show)


def _open_browser(entry: Path, link: str) -> None:
    """Open a page that leads to the link and that nobody else can read.

    A link on the browser's command line would be visible to every user of this machine. The browser is started in a
    thread: a terminal browser waits for the studio's answer.
    """
    entry.unlink(missing_ok=True)  # of a process that had the same number
    with os.fdopen(os.open(entry, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as f:
        f.write(LEADS_ON % (link, link))
    threading.Thread(target=webbrowser.open, args=(entry.as_uri(),), daemon=True, name="browser").start()


def _show_link(events: Events, address: str, guard: StudioGuard, whom: str) -> None:
    """Show a one-time link, which lets one browser in."""
    events.emit(Say(text=f"the studio, for {whom}: {address}{guard.link}"))
