"""The entry point.

Ctrl-C while Python is still loading ends the process as the shell expects, without a traceback, and nothing is imported
from the folder that the command is started in.
"""

from pathlib import Path

from settle.base.python_command import leave_current_folder

leave_current_folder(Path(__file__).parent)

import signal  # noqa: E402

_before = signal.getsignal(signal.SIGINT)
if _before is signal.default_int_handler:  # a process in the background may ignore it
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from settle.base.run.launcher import is_rank, leave  # noqa: E402
from settle.cli import main as _main  # noqa: E402

signal.signal(signal.SIGINT, _before)


def main() -> int:
    """Run the command of the command line; the exit code. A rank of torchrun ends here."""
    code = _main()
    if is_rank():
        leave(code)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
