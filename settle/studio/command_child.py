"""A command whose result a page shows: the same as in a terminal, in a process of its own, which ends with the page."""

import asyncio
import contextlib
import json
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from nicegui import ui

from settle.base.errors import RunError, SettleError

LINES = 400  # of what it says that are kept
STOP_SECONDS = 5.0
NOT_BETTER = 3  # exit code of no answer, or of something that is wrong: there is a result

Talk = Callable[[Sequence[str]], None]


class CommandChild:
    """One such process at a time, for the page that is being built; it ends with the page."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        ui.context.client.on_delete(self.stop)

    async def read(self, line: Sequence[str], on_talk: Talk = lambda lines: None) -> Mapping[str, object]:
        """What `settle LINE --json` returns, also with exit code 3. on_talk: called with all its lines so far.

        Raises the SettleError that the command ends with; RunError when it was stopped.
        """
        await self.stop()
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "settle", *line, "--json"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 24,
        )
        assert process.stdout and process.stderr
        talk: deque[str] = deque(maxlen=LINES)
        answer = asyncio.ensure_future(process.stdout.read())
        async for text in process.stderr:
            talk.append(text.decode("utf-8", "replace").rstrip())
            on_talk(talk)
        code = await process.wait()
        result = (await answer).strip()
        self._process = None
        if code not in (0, NOT_BETTER) or not result:
            raise error_of("\n".join(talk)) if code > 0 else RunError("it was stopped", "")
        return cast(Mapping[str, object], json.loads(result.splitlines()[-1]))

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


def error_of(talk: str) -> SettleError:
    """The error that a command has ended with, from what it said."""
    what, _, fix = talk.rpartition("settle: ")[2].partition("→")
    return RunError(" ".join(what.split()) or "the command failed", " ".join(fix.split()))
