"""Commands that the studio starts, as in a terminal, each in a process of its own that reports its events."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nicegui import ui

from settle.base.errors import RunError, SettleError
from settle.base.event_log import read_events
from settle.base.events import Event, PlanReady, Progress, RunFailed
from settle.base.python_command import NEW_GROUP, module_command
from settle.base.visible import visible
from settle.base.words.sentences import event_lines, progress_text
from settle.studio.layout import words

LINES = 400  # of what it says that are kept
STOP_SECONDS = 5.0
NOT_BETTER = 3  # exit code of no answer, or of something that is wrong: there is a result
POLL_SECONDS, FOLLOW_SECONDS = 0.1, 0.5


class CommandChild:
    """A command whose result a page shows, one at a time; it ends with the page.

    status: a line of the page that says what it does, above a bar that shows how far it is; talk: its latest lines;
    plan: that the latest one made.
    """

    plan: PlanReady | None = None

    def __init__(self) -> None:
        self.status = words("", classes="dim").props('role="status"')
        self._bar = ui.element("progress").props('aria-label="How far it is"')
        self._bar.set_visibility(False)
        self.talk: deque[str] = deque(maxlen=LINES)
        self._process: asyncio.subprocess.Process | None = None
        ui.context.client.on_delete(self.stop)

    async def read(self, line: Sequence[str]) -> Mapping[str, Any]:
        """Return what `settle LINE --json` returns, also with exit code 3.

        Raises the SettleError that the command ends with; RunError when it was stopped.
        """
        await self.stop()
        self.status.text = "working …"
        try:
            with _report() as report:
                following = asyncio.ensure_future(self._follow(report))
                try:
                    return await self._read(line, report)
                finally:
                    following.cancel()
        finally:
            self.status.text = ""
            self._bar.set_visibility(False)

    async def _follow(self, report: Path) -> None:
        """Show how far the command is, as its latest event says."""
        latest = None
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            events = [event for event in read_events(report) if event.kind == "progress"]
            if events and events[-1] != latest:
                latest = events[-1]
                began = next(event.time for event in events if event.what == latest.what)
                self.status.text = visible(f"{latest.what}: {progress_text(latest, began)}")
                self._bar.props.update({"value": latest.done, "max": latest.total or 1})
                self._bar.set_visibility(bool(latest.total))

    async def _read(self, line: Sequence[str], report: Path) -> Mapping[str, Any]:
        self._process = process = await asyncio.create_subprocess_exec(
            *_command(report, [line[0], "--json", "--verbose", *line[1:]]),  # progress of short work, too
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 24,
        )
        assert process.stdout and process.stderr
        self.talk.clear()
        answer = asyncio.ensure_future(process.stdout.read())
        async for line_of_it in process.stderr:
            self.talk.append(line_of_it.decode("utf-8", "replace").rstrip())
            self.status.text = visible(self.talk[-1])
        code = await process.wait()
        result = (await answer).strip()
        self._process = None
        self.plan = next((event for event in read_events(report) if isinstance(event, PlanReady)), None)
        if code not in (0, NOT_BETTER) or not result:
            raise _error_in(read_events(report), self.talk) if code > 0 else RunError("it was stopped", "")
        values: Mapping[str, Any] = json.loads(result.splitlines()[-1])
        return values

    async def stop(self) -> None:
        """End it, as Ctrl-C does."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if os.name == "nt":  # which sends Ctrl-C to a terminal alone; what was saved is there
                process.terminate()
            else:
                process.send_signal(signal.SIGINT)
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()


async def read_module(module: str, *arguments: str, seconds: float) -> object:
    """Return what a module of settle prints as JSON, in a process with memory of its own. Raises RunError."""
    process = await asyncio.create_subprocess_exec(
        *module_command(module, *arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, errors = await asyncio.wait_for(process.communicate(), seconds)
    except TimeoutError:
        process.kill()
        raise RunError(f"this took more than {seconds:.0f} s", "try again when the machine is less busy") from None
    if process.returncode:
        raise RunError(f"{module} failed: {errors.decode('utf-8', 'replace').strip()[-400:]}", "load the page again")
    return json.loads(out)


async def start_command(
    arguments: Sequence[str],
    has_begun: Callable[[Sequence[Event]], bool],
    say: Callable[[str], None] = lambda text: None,
) -> Sequence[Event]:
    """Start `settle ARGUMENTS`, which outlives the studio, and wait until its work has begun, or it has ended.

    Returns its events so far. say: called with what it does until then. Raises the error that it ends with before.
    """
    with _report() as report, report.with_name("talk").open("w+b") as talk:
        process = subprocess.Popen(
            _command(report, arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=talk,
            start_new_session=True,  # Ctrl-C in the studio's terminal is not meant for it
            creationflags=NEW_GROUP,
        )
        # it leaves no zombie, and a studio that stops does not wait for it
        threading.Thread(target=process.wait, daemon=True, name="child").start()
        events: list[Event] = []
        while not has_begun(events):
            await asyncio.sleep(POLL_SECONDS)
            is_over = process.poll() is not None
            seen, events = len(events), [*read_events(report)]
            for event in events[seen:]:
                _say(event, say)
            if is_over:
                break
        if process.returncode:
            talk.seek(0)
            raise _error_in(events, talk.read().decode("utf-8", "replace").splitlines())
    return events


def _command(report: Path, line: Sequence[str]) -> list[str]:
    return module_command("settle", f"--events-to={report}", *line)


@contextlib.contextmanager
def _report() -> Iterator[Path]:
    """Make a file that a command writes its events to, for as long as they are read."""
    with tempfile.TemporaryDirectory(prefix="settle-", ignore_cleanup_errors=True) as folder:
        yield Path(folder) / "events.jsonl"


def _say(event: Event, say: Callable[[str], None]) -> None:
    if isinstance(event, Progress):
        say(visible(event.what))
    for text, _ in event_lines(event):
        say(visible(text))


def _error_in(events: Iterable[Event], talk: Iterable[str]) -> SettleError:
    """Return the error that a command has reported; of a fault of ours, the last line of its traceback."""
    failures = [event for event in events if isinstance(event, RunFailed)]
    if failures:
        return RunError(failures[-1].what, failures[-1].fix)
    return RunError(f"the command failed: {' '.join([*talk][-1:])}", "run the same line in a terminal")
