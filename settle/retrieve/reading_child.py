"""The process that documents are read in: whatever a file does to its reader, it does not do to the index.

A line of JSON asks for a file, `{"path", "reader"}`; lines answer it: `{"block"}` and `{"note"}`, and at last
`{"end": ""}` or why nothing came out of it. The process ends when its stdin does.
"""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from settle.base.registry import part
from settle.retrieve.document import Unreadable

MEMORY = 4 << 30  # bytes of address space
MOST_TEXT = 64 << 20  # characters of one document


def main() -> None:
    """Reads what stdin asks for until it ends."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows, or a lower limit is set already
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    out = sys.stdout
    sys.stdout = sys.stderr  # a library that prints must not break the protocol

    def say(**message: Any) -> None:
        out.write(json.dumps(message) + "\n")

    for line in sys.stdin:
        asked = json.loads(line)
        try:
            _read(Path(asked["path"]), asked["reader"], say)
            end = ""
        except Unreadable as e:
            end = e.what
        except MemoryError:
            end = f"reading it takes more than {MEMORY >> 30} GiB"
        except RecursionError:
            end = "it is nested too deeply"
        except OSError as e:
            end = f"cannot be read: {e.strerror or e}"
        except Exception as e:  # noqa: BLE001  the edge: a library met a file that it was not made for
            end = f"damaged or not what its name says: {type(e).__name__}: {str(e)[:200]}"
        say(end=end)
        out.flush()


def _read(path: Path, reader: str, say: Any) -> None:
    size = 0
    for block in part("retrieve/readers", reader)().read(path, lambda text: say(note=text)):  # type: ignore[attr-defined]
        size += len(block.text)
        if size > MOST_TEXT:
            say(note=f"only its first {MOST_TEXT >> 20} million characters are read")
            return
        if block.text.strip():
            say(block=dataclasses.asdict(block))


if __name__ == "__main__":
    main()
