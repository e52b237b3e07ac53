"""The process that reads documents: a file that crashes or hangs its reader does neither to the parent.

A line of JSON asks for a file, `{"path", "reader", "seconds"}`. Lines answer it: `["block", …]` and `["note", text]`,
at last `["end", "" or why the file is unreadable, whether another file may be asked for]` or `["missing", library]`.
The process ends when its stdin does, and by itself when a file takes too long. The folders that it may read documents
from are on its command line; it writes no file, starts no program and opens no connection (Linux: see `confine`).
"""

import contextlib
import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import TextIO, TypedDict

from settle.documents.blocks import Unreadable
from settle.documents.confine import confine
from settle.documents.readers import Reader

MEMORY = 4 << 30  # bytes of address space
LARGE = 1 << 30  # bytes that once were in use: the next file gets a process whose heap is not fragmented by them
MOST_TEXT = 64 << 20  # characters of one document
MOST_NOTES = 20
_GRACE = 10  # seconds after those in which the parent ends this process: for when it is gone itself


class Request(TypedDict):
    """A file to read."""

    path: str
    reader: str
    seconds: float  # that it may take


def main() -> None:
    """Read the files that stdin asks for until it ends."""
    # a library that prints must not break the protocol
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows, or a lower limit is set already
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    confine(json.loads(sys.argv[1]) if len(sys.argv) > 1 else None)
    requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    while True:
        request = requests.get()
        if hasattr(signal, "alarm"):  # it ends the process even when a library holds the interpreter's lock
            signal.alarm(int(request["seconds"]) + _GRACE)
        error, continues = _try(request, out)
        _send(out, "end", error, continues and not _is_large())
        out.flush()


def _listen(requests: "queue.SimpleQueue[Request]") -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)


def _try(request: Request, out: TextIO) -> tuple[str, bool]:
    """Return why a file is unreadable, or "", and whether this process can read another one."""
    try:
        _read(Path(request["path"]), request["reader"], out)
    except Unreadable as e:
        return e.what, True
    except MemoryError:
        return f"reading it takes more than {MEMORY >> 30} GiB", False
    except RecursionError:
        return "it is nested too deeply", True
    except ModuleNotFoundError as e:
        _send(out, "missing", e.name)
        out.flush()
        return "", False
    except OSError as e:
        return f"cannot be read: {e.strerror or e}", True
    except Exception as e:  # noqa: BLE001  the edge: a library met a file that it was not made for
        return f"damaged or not what its name says: {type(e).__name__}: {str(e)[:200]}", True
    return "", True


def _read(path: Path, reader: str, out: TextIO) -> None:
    size = notes = 0

    def note(text: str) -> None:
        nonlocal notes
        notes += 1
        if notes <= MOST_NOTES:
            _send(out, "note", text if notes < MOST_NOTES else "and more of the kind")

    for block in Reader.part(reader)().blocks(path, note):
        size += len(block.text)
        if size > MOST_TEXT:
            note(f"only its first {MOST_TEXT >> 20} million characters are read")
            return
        if block.text.strip():
            where = (block.place.line, block.place.page, _clean(block.place.part))
            text, header = _clean(block.text), _clean(block.header)
            _send(out, "block", block.kind, text, where, block.level, block.lined, header)


def _clean(text: str) -> str:
    """Remove zero characters and halves of UTF-16 pairs, which no text file may hold."""
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


def _send(out: TextIO, *message: object) -> None:
    out.write(json.dumps(message) + "\n")


def _is_large() -> bool:
    status = Path("/proc/self/status")  # on Linux getrusage starts from the peak of the process that started this one
    if status.exists() and (peak := status.read_text().partition("VmHWM:")[2]):  # some kernels have no such line
        return 1024 * int(peak.split()[0]) > LARGE
    try:
        import resource
    except ImportError:
        return False
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, else KiB
    return most * (1 if sys.platform == "darwin" else 1024) > LARGE


if __name__ == "__main__":
    main()
