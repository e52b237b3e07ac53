"""The process that documents are read in: whatever a file does to its reader, it does not do to the index.

A line of JSON asks for a file, `{"path", "reader", "seconds"}`. Lines answer it: `["block", …]` and `["note", text]`,
at last `["end", "" or why nothing came out of it, whether another file may be asked for]` or `["missing", library]`.
The process ends when its stdin does, and by itself when a file takes too long.
"""

import contextlib
import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from settle.documents.blocks import Block, Unreadable
from settle.documents.readers import Reader

MEMORY = 4 << 30  # bytes of address space
LARGE = 1 << 30  # bytes that once were in use: what comes next gets a process that is not cut to pieces by them
MOST_TEXT = 64 << 20  # characters of one document
MOST_NOTES = 20
_GRACE = 10  # seconds after those in which the parent ends this process: for when it is gone itself


def main() -> None:
    """Reads what stdin asks for until it ends."""
    # a library that prints must not break the protocol
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _limit_memory()
    asked: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    while True:
        request = asked.get()
        if hasattr(signal, "alarm"):  # its action is to end the process, even when a library holds on to it
            signal.alarm(int(request["seconds"]) + _GRACE)
        error, goes_on = _tried(request, out)
        _say(out, "end", error, goes_on and not _is_large())
        out.flush()


def _listen(asked: "queue.SimpleQueue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        asked.put(json.loads(line))
    os._exit(0)


def _tried(request: dict[str, Any], out: Any) -> tuple[str, bool]:
    """Why nothing came out of a file, or "", and whether this process can go on."""
    try:
        _read(Path(request["path"]), request["reader"], out)
    except Unreadable as e:
        return e.what, True
    except MemoryError:
        return f"reading it takes more than {MEMORY >> 30} GiB", False
    except RecursionError:
        return "it is nested too deeply", True
    except ModuleNotFoundError as e:
        _say(out, "missing", e.name)
        out.flush()
        return "", False
    except OSError as e:
        return f"cannot be read: {e.strerror or e}", True
    except Exception as e:  # noqa: BLE001  the edge: a library met a file that it was not made for
        return f"damaged or not what its name says: {type(e).__name__}: {str(e)[:200]}", True
    return "", True


def _read(path: Path, reader: str, out: Any) -> None:
    size = notes = 0

    def note(text: str) -> None:
        nonlocal notes
        notes += 1
        if notes <= MOST_NOTES:
            _say(out, "note", text if notes < MOST_NOTES else "and more of the kind")

    for block in Reader.part(reader)().blocks(path, note):
        size += len(block.text)
        if size > MOST_TEXT:
            note(f"only its first {MOST_TEXT >> 20} million characters are read")
            return
        if block.text.strip():
            _say_block(out, block)


def _say_block(out: Any, block: Block) -> None:
    place = block.place
    where = (place.line, place.page, _clean(place.part))
    _say(out, "block", block.kind, _clean(block.text), where, block.level, block.lined, _clean(block.header))


def _clean(text: str) -> str:
    """Without what no file of text may hold: zero characters and halves of pairs of UTF-16."""
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


def _say(out: Any, *said: Any) -> None:
    out.write(json.dumps(said) + "\n")


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows, or a lower limit is set already
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _is_large() -> bool:
    status = Path("/proc/self/status")  # what getrusage tells on Linux begins with the peak of who started this process
    if status.exists() and (told := status.read_text().partition("VmHWM:")[2]):  # not every kernel that is like it
        return 1024 * int(told.split()[0]) > LARGE
    try:
        import resource
    except ImportError:
        return False
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, else KiB
    return most * (1 if sys.platform == "darwin" else 1024) > LARGE


if __name__ == "__main__":
    main()
