"""Commands that the studio starts, as in a terminal, each in a process of its own."""

import asyncio
import contextlib
import json
import signal
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nicegui import ui

from settle.base.child.python_command import module_command
from settle.base.errors import RunError, SettleError
from settle.base.visible import visible
from settle.studio.layout import words

LINES = 400  # of what it says that are kept
STOP_SECONDS = 5.0
NOT_BETTER = 3  # exit code of no answer, or of something that is wrong: there is a result
SOON_SECONDS = 60.0  # in which a command has begun its work, or ended with a mistake
POLL_SECONDS = 0.1


class CommandChild:
    """A command whose result a page shows, one at a time; it ends with the page. status: a line of the page that says
    what it does; talk: its latest lines."""

    def __init__(self) -> None:
        self.status = words("", classes="dim").props('role="status"')
        self.talk: deque[str] = deque(maxlen=LINES)
        self._process: asyncio.subprocess.Process | None = None
        ui.context.client.on_delete(self.stop)

    async def read(self, line: Sequence[str], on_line: Callable[[str], None] = lambda text: None) -> Mapping[str, Any]:
        """What `settle LINE --json` returns, also with exit code 3. on_line: called with each line that it says.

        Raises the SettleError that the command ends with; RunError when it was stopped.
        """
        await self.stop()
        self.status.text = "working …"
        try:
            return await self._read(line, on_line)
        finally:
            self.status.text = ""

    async def _read(self, line: Sequence[str], on_line: Callable[[str], None]) -> Mapping[str, Any]:
        self._process = process = await asyncio.create_subprocess_exec(
            *module_command("settle", *line, "--json"),
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
            on_line(self.talk[-1])
        code = await process.wait()
        result = (await answer).strip()
        self._process = None
        if code not in (0, NOT_BETTER) or not result:
            raise _error_of("\n".join(self.talk)) if code > 0 else RunError("it was stopped", "")
        values: Mapping[str, Any] = json.loads(result.splitlines()[-1])
        return values

    async def stop(self) -> None:
        """Ends it, as Ctrl-C does."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()


async def read_module(module: str, *arguments: str, seconds: float) -> object:
    """What a module of settle prints as JSON: work that takes more memory than the studio has. Raises RunError."""
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


async def start_command(arguments: Sequence[str], has_begun: Callable[[], bool]) -> None:
    """Starts `settle ARGUMENTS`, which outlives the studio, and waits until its work has begun. Raises RunError, with
    what it said, when it fails before."""
    with tempfile.TemporaryFile() as talk:
        process = subprocess.Popen(
            module_command("settle", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=talk,
            start_new_session=True,  # Ctrl-C in the studio's terminal is not meant for it
        )
        for _ in range(round(SOON_SECONDS / POLL_SECONDS)):
            await asyncio.sleep(POLL_SECONDS)
            if process.poll() is not None or has_begun():
                break
        if process.returncode:
            talk.seek(0)
            raise _error_of(talk.read().decode("utf-8", "replace"))
    asyncio.get_running_loop().run_in_executor(None, process.wait)  # leaves no zombie


def _error_of(talk: str) -> SettleError:
    """The error that a command has ended with, from what it said."""
    what, _, fix = talk.rpartition("settle: ")[2].partition("→")
    return RunError(" ".join(what.split()) or "the command failed", " ".join(fix.split()))
