"""A reader that does to its process what a library may do: the word in its file says what."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from settle.documents.blocks import Block, Note
from settle.documents.readers import Reader


class Stuck(Reader):
    suffixes: ClassVar[tuple[str, ...]] = (".stuck",)

    def blocks(self, path: Path, note: Note) -> Iterator[Block]:
        match path.read_text():
            case "sleep":
                path.with_name("asleep").touch()
                time.sleep(300)
            case "hold":
                ctypes.PyDLL(None).sleep(300)  # keeps the interpreter's lock
            case "abort":
                os.abort()
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(3)
            case "raise":
                1 / 0  # noqa: B018
            case "memory":
                yield Block("text", "x" * (5 << 30))
            case "import":
                import no_such_library  # noqa: F401
            case "print":
                print("a library that prints")
                os.write(1, b"and one that does so in C\n")
                sys.stdout.flush()
                yield Block("text", "said in spite of what was printed")
            case "much":
                for number in range(70):
                    note(f"note {number}")
                    yield Block("text", "x" * (1 << 20))
