"""Work that the studio starts: a command as in a terminal, in a process of its own, which outlives the studio."""

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

from settle.studio.command_child import error_of

SOON_SECONDS = 60.0  # in which a command has begun its work, or ended with a mistake
POLL_SECONDS = 0.1


async def start_command(arguments: Sequence[str], has_begun: Callable[[], bool]) -> None:
    """Starts `settle ARGUMENTS`, and waits until its work has begun. Raises RunError, with what it said, when it fails
    before."""
    with tempfile.TemporaryFile() as talk:
        process = subprocess.Popen(
            [sys.executable, "-m", "settle", *arguments],
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
            raise error_of(talk.read().decode("utf-8", "replace"))
    asyncio.get_running_loop().run_in_executor(None, process.wait)  # leaves no zombie
