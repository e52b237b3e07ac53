"""The forms of commands: every setting, the command line that does the same, files, rows with their mask, mistakes."""

import asyncio
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, get_origin

import psutil
import pytest

from settle.base.choice import family_of, named_family
from settle.base.command_line import arguments, positional
from settle.base.described_settings import setting_types
from settle.base.errors import RunError, UsageError
from settle.base.events import RunStarted, WorkStarted
from settle.base.python_command import shell_line
from settle.base.run import has_begun
from settle.base.settings import leaves, resolve
from settle.cli import build_app
from settle.commands import Command
from settle.studio.command_child import start_command
from settle.studio.forms.work import WorkForm
from tests.retrieve.asked import TEXTS, index
from tests.retrieve.conftest import joined  # noqa: F401  `hashed` is an embedder
from tests.server.conftest import until
from tests.studio.conftest import SECONDS, axe_findings, start_studio
from tests.studio.made_models import stock
from tests.studio.payloads import PAYLOADS

COMMANDS = [name for name, command in Command.parts().items() if command.begins_work]


def test_the_commands_that_make_something_have_a_form():
    assert set(COMMANDS) >= {"train", "tune", "distill", "shrink", "index", "choose", "pick"}


def _values(key, info, name):
    """Values of a setting that are not its default, as a form gives them."""
    kinds = list(setting_types(info.annotation))
    if key == "recipe":
        return []
    if kinds == [bool]:
        return [not info.default]
    if bool in kinds:
        return [True, False]
    if any(get_origin(kind) is Literal for kind in kinds):
        return [str(value) for kind in kinds for value in kind.__args__ if value != info.default]
    if any(get_origin(kind) is list for kind in kinds):
        return [["one file", "-"]] if key in ("inputs", "paths") else [["one file", "two"]]
    texts = {"time": "30m", "tokens": "10k", "size": "1m", "context": "64"}
    for text in (texts.get(name, ""), "a b's $c", "1", "0.5", "7"):
        if not text:
            continue
        return [text if named_family(info) is None else named_family(info).names()[0]]
    return []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_setting_is_the_same_on_the_command_line(name, monkeypatch):
    command = Command.part(name)
    ran: list[Command] = []
    monkeypatch.setattr(command, "run", lambda self, events: ran.append(self) or 0)
    needed = {key: "x" for key, info in leaves(command) if info.is_required() or key in command.positional}
    needed = {key: value for key, value in needed.items() if "list" not in str(command.model_fields[key].annotation)}
    tried = 0
    for key, value in _every_value(command):
        given = needed | {key: value}
        try:
            expected = resolve(command, [("asked", given)]).value
        except UsageError:  # a number that is out of range, and so on: the form refuses it as well
            continue
        assert shlex.split(shell_line(*arguments(command, given))) == arguments(command, given)
        line = arguments(command, given)
        app = build_app(line)
        tokens = ["\0-" if token == "-" else token for token in line]
        app(tokens, exit_on_error=False, print_error=False)
        assert ran.pop().model_dump() == expected.model_dump(), line
        tried += 1
    assert tried >= 0.8 * len(list(leaves(command)))


def _every_value(command):
    for key, info in leaves(command):
        family = family_of(info)
        if family is None:
            numeric = {int, float} & set(setting_types(info.annotation))
            values = _values(key, info, key)
            yield from ((key, value) for value in (["0.25", "3"] if numeric else values))
            continue
        for name, part in family.parts().items():
            yield key, name
            if name != family.default:
                continue
            for setting, inner in part.model_fields.items():
                numeric = {int, float} & set(setting_types(inner.annotation))
                values = ["0.25", "3"] if numeric else _values(setting, inner, setting)
                yield from ((f"{key}.{setting}", value) for value in values)


def test_a_form_has_every_setting(page):
    page.goto("/new?command=distill")
    page.get_by_label("Find a setting").wait_for()
    labels = set(page.locator(".field > label").all_text_contents())
    command = Command.part("distill")
    wanted = {key for key, _ in leaves(command) if key != "dry"}
    for key, info in leaves(command):
        family = family_of(info)
        if family and family.default in family.parts():
            wanted |= {f"{key}.{setting}" for setting in family.parts()[family.default].model_fields}
    assert labels >= {key.replace("_", "-").rstrip("-") for key in wanted}
    assert positional(command)[0] in labels
    page.get_by_label("Find a setting").press_sequentially("warmup")
    page.get_by_label("seed", exact=True).wait_for(state="hidden")


def test_a_part_of_another_package_is_in_the_form(browser, installed_ia3, tmp_path):
    live = start_studio(tmp_path)
    context = browser.new_context()
    context.set_default_timeout(SECONDS * 1000)
    tab = context.new_page()
    tab.goto(live.link)
    tab.wait_for_url(live.address + "/")  # the link leads there once it has been taken
    tab.goto(live.address + "/new?command=distill")
    tab.get_by_text("More settings").click()
    tab.get_by_label("adapter", exact=True).select_option("ia3")
    tab.get_by_text("Settings of ia3").click()
    assert tab.locator(".field > label", has_text="adapter.").count() > 0
    assert "--adapter ia3" in tab.locator(".commandline").text_content()
    if sys.platform == "linux":  # parts import torch, which takes 200 MB: not in the studio's own process
        assert not [m.path for m in psutil.Process(live.process.pid).memory_maps() if "libtorch" in m.path]
    context.close()
    live.stop()


def test_a_mistake_is_shown_at_its_field_and_the_command_line_follows(page):
    page.goto("/new?command=index")
    page.get_by_label("paths", exact=True).fill("my notes")
    page.keyboard.press("Tab")
    page.get_by_text("The same in a terminal").click()
    page.get_by_text("settle index 'my notes'").wait_for()
    page.goto("/new?command=distill")
    page.get_by_label("time", exact=True).fill("5 parsecs")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Start").click()
    page.locator(".field", has=page.get_by_role("alert")).first.wait_for()


def test_a_value_that_begins_with_a_dash_is_no_option():
    assert arguments(Command.part("train"), {"inputs": ["--help"], "steps": "2"}) == [
        *("train", "--steps", "2", "--", "--help")
    ]
    assert arguments(Command.part("train"), {"inputs": ["-"], "steps": "2"}) == ["train", "-", "--steps", "2"]


def _apart(work):
    """What a coroutine returns, in a loop of its own: that of the browser runs in this thread."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _ran(line, has_begun=has_begun):
    """What a command reports until its work has begun, and what the studio says meanwhile."""
    said: list[str] = []
    return _apart(start_command(line, has_begun, said.append)), said


def test_a_command_reports_what_it_has_begun(tmp_path, monkeypatch):
    """Its own work and no other's: a run by its plan, an index that makes no new folder, a mistake in its own words."""
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path / "home"))
    (tmp_path / "notes").mkdir()
    with pytest.raises(RunError, match="there is no folder or file") as failed:
        _ran(["index", str(tmp_path / "nowhere")])
    assert failed.value.fix
    with pytest.raises(RunError, match="unknown option --lrr") as failed:
        _ran(["train", str(tmp_path / "notes"), "--lrr", "3"])
    docs = Path(__file__).parents[2] / "docs"
    events, said = _ran(["train", str(docs), "--name", "first", "--size", "20k", "--threads", "1", "--steps", "2"])
    first = next(event for event in events if isinstance(event, RunStarted))
    assert first.name == "first" and Path(first.path).is_dir() and said


def test_a_studio_that_stops_does_not_wait_for_what_it_started(joined, tmp_path, monkeypatch):  # noqa: F811
    """asyncio joins the threads of its executor at its end, and it has few of them: none waits for a command."""
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path / "home"))
    (tmp_path / "documents").mkdir()
    index("docs", tmp_path / "documents", TEXTS)  # an index that there is already: no new folder shows that it works

    async def start() -> str:
        events = await start_command(["index", "docs", "--watch"], has_begun)
        assert asyncio.get_running_loop()._default_executor is None  # type: ignore[attr-defined]
        return next(event.name for event in events if isinstance(event, WorkStarted))

    assert _apart(start()) == "docs"
    (child,) = [p for p in psutil.Process().children() if "--watch" in p.cmdline()]
    assert child.is_running() and child.status() != psutil.STATUS_ZOMBIE  # at work when the loop has ended
    child.kill()
    assert until(lambda: not child.is_running())  # and its end is noticed: no zombie is left


def test_dropped_rows_become_a_run_by_a_model_and_a_time(page, studio):
    stock(studio.home)
    page.goto("/new")
    page.locator("input[type=file]").set_input_files(studio.home / "rows.jsonl")
    page.get_by_text("rows.jsonl is stored").wait_for()
    assert (studio.home / "uploads/rows.jsonl").read_bytes() == (studio.home / "rows.jsonl").read_bytes()
    page.get_by_text("48 rows in 1 file").wait_for()
    learned = page.locator("mark").all_text_contents()
    assert len(learned) == 5 and all(text.startswith("It is") for text in learned)
    shown = "".join(page.locator("pre.sample").all_text_contents())
    assert sum(payload in shown for payload in PAYLOADS) > 10 and page.evaluate("window.__ran") is None
    page.get_by_role("slider").wait_for()
    before = page.locator(".beside dl").inner_text()
    page.get_by_role("slider").press("ArrowLeft")
    shorter = page.locator(".beside pre").filter(has_text="--time 5m")
    shorter.wait_for(state="attached")
    assert page.locator(".beside dl").inner_text() != before and not axe_findings(page)
    page.get_by_role("row", name="tuned").get_by_role("button", name="Choose").click()
    shorter.filter(has_text=f"settle tune tuned {studio.home}/uploads/rows.jsonl").wait_for(state="attached")
    page.get_by_role("button", name="Start", exact=True).click()
    page.wait_for_url("**/runs/*-tune-rows-*")
    page.get_by_role("button", name="Stop").click()


def test_a_link_fills_the_form_with_the_settings_that_the_command_has(page, studio):
    """As the buttons of Models do; values that are no settings are ignored."""
    stock(studio.home)
    page.goto("/new?command=shrink&model=tiny&bogus=1")
    page.get_by_text("settle shrink tiny", exact=True).wait_for(state="attached")
    assert page.get_by_label("model", exact=True).input_value() == "tiny"
    rows = studio.home / "rows.jsonl"
    page.goto(f"/new?command=tune&objective=decision&model=twin&bogus=1&inputs={rows}")
    line = page.get_by_text(f"settle tune twin {rows} --time 10m --objective decision", exact=True)
    line.wait_for(state="attached")
    page.get_by_text("All settings").click()
    page.get_by_label("objective", exact=True).wait_for(state="attached")
    assert page.get_by_label("objective", exact=True).input_value() == "decision" and line.count() == 1


def test_what_cannot_be_read_is_said_on_the_page(page, studio, tmp_path):
    """A path that is not there, an empty folder, and columns of unknown names that are chosen."""
    table = tmp_path / "ein Täble.csv"
    table.write_text("Frage,Antwort\n" + "".join(f"{n} und {n}?,{2 * n}\n" for n in range(20)))
    page.goto("/new")
    for path, text in ((tmp_path / "nowhere", "no file or folder"), (tmp_path / "empty", "nothing to learn from")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        page.get_by_label("File or folder of this machine").fill(str(path))
        page.keyboard.press("Tab")
        page.get_by_role("alert").get_by_text(text).wait_for()
    page.get_by_label("File or folder of this machine").fill(str(table))
    page.keyboard.press("Tab")
    page.get_by_label("What is learned").wait_for()
    page.get_by_role("button", name="Use these columns").click()
    page.get_by_text("20 rows in 1 file").wait_for()


def test_files_that_are_named_before_the_settings_are_there_are_kept():
    """Settings take a while to read on a busy machine; a person types meanwhile."""
    form = WorkForm(Command.parts()["index"], {})
    form.line = SimpleNamespace(text="")
    for path in ("/a", "/b c"):
        _apart(form._add_file("paths", path))
    assert form.given() == {"paths": ["/a", "/b c"]} and form.line.text == "settle index /a '/b c'"


def test_nothing_is_indexed_where_no_folder_is_named(page):
    page.goto("/new?command=index")
    page.get_by_role("button", name="Start").click()
    page.get_by_text("no folder is chosen").wait_for()


def test_a_large_file_is_written_as_it_arrives(page, studio, tmp_path):
    """Its name is only a name, whatever is in it; and what would not fit is refused before it is sent."""
    page.goto("/new?command=train")

    path = "/uploads?name=..%2F..%2Fetc%2Fpasswd"
    script = "async (path) => (await fetch(path, {method: 'PUT', body: new Blob([new Uint8Array(3e7)])})).json()"
    stored = Path(page.evaluate(script, path)["path"])
    assert stored.parent == studio.home / "uploads" and stored.stat().st_size == 30_000_000
    assert not list(stored.parent.glob(".*.part"))
