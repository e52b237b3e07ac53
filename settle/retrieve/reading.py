"""Documents read in a child process, the next ones while the last are worked on."""

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from settle.base.registry import parts
from settle.retrieve.document import Block, Place

SECONDS = 120.0  # that one document may take
_AHEAD = 8  # documents that are read before they are needed


@dataclass(frozen=True)
class Read:
    """A document's blocks, what was left out of it, and why nothing was read, or ""."""

    path: Path
    blocks: list[Block]
    notes: tuple[str, ...]
    error: str


@cache
def reader_of(suffix: str) -> str | None:
    """The name of the reader of files with that suffix (lower case, with the dot)."""
    return _readers().get(suffix)


@cache
def _readers() -> dict[str, str]:
    return {suffix: name for name, kind in parts("retrieve/readers").items() for suffix in kind.suffixes}  # type: ignore[attr-defined]


def read_all(paths: Iterable[tuple[Path, str]], seconds: float = SECONDS) -> Iterator[Read]:
    """Each (path, reader) read, in order. Closing the iterator ends the child."""
    ready: queue.Queue[Read | BaseException | None] = queue.Queue(_AHEAD)
    child = _Child(seconds)
    stopped = threading.Event()

    def work() -> None:
        try:
            for path, reader in paths:
                found = child.read(path, reader)
                if stopped.is_set():
                    return
                ready.put(found)
            ready.put(None)
        except BaseException as e:  # noqa: BLE001  raised again below, in the thread that asked
            ready.put(e)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (found := ready.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        stopped.set()
        child.close()
        while thread.is_alive():  # it may wait for room in the queue
            try:
                ready.get(timeout=0.05)
            except queue.Empty:
                pass


class _Child:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self._late = False

    def read(self, path: Path, reader: str) -> Read:
        process = self._started()
        self._late = False
        timer = threading.Timer(self._seconds, self._kill_late, (process,))
        timer.start()
        blocks: list[Block] = []
        notes: list[str] = []
        error = "its reader ended without a word"
        try:
            assert process.stdin and process.stdout
            process.stdin.write(json.dumps({"path": str(path), "reader": reader}) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                said = json.loads(line)
                if "block" in said:
                    block = said["block"]
                    blocks.append(Block(**block | {"place": Place(**block["place"])}))
                elif "note" in said:
                    notes.append(said["note"])
                else:
                    error = said["end"]
                    break
            else:
                self.close()
        except (BrokenPipeError, ValueError):
            self.close()
        finally:
            timer.cancel()
        if self._late:
            error = f"reading it takes more than {self._seconds:.0f} s"
        return Read(path, [] if error else blocks, tuple(notes), error)

    def _kill_late(self, process: subprocess.Popen[str]) -> None:
        self._late = True
        process.kill()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "settle.retrieve.reading_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                process_group=0,
            )
        return self._process

    def close(self) -> None:
        process, self._process = self._process, None
        if process:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream:
                    try:
                        stream.close()
                    except OSError:
                        pass
