"""The three standard streams, made fit for use before anything is read or written."""

import os
import sys
import traceback
from types import TracebackType
from typing import TextIO

from settle.base.visible import visible


def prepare_streams() -> None:
    """Make a closed stream (`>&-`) swallow what it gets, and replace signs that a stream's encoding lacks.

    Called once, first: a closed number would be given to the next file that is opened.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            opened = os.open(os.devnull, os.O_RDONLY if name == "stdin" else os.O_WRONLY)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", errors="replace"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    sys.excepthook = _show_fault


def _show_fault(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
    """Show a fault of ours, whose message may hold foreign text."""
    sys.stderr.write(visible("".join(traceback.format_exception(kind, error, at))))
