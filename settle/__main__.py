"""The entry point.

Ctrl-C while Python is still loading ends the process as the shell expects, without a traceback, and nothing is imported
from the folder that the command is started in.
"""

from pathlib import Path

from settle.base.python_command import leave_current_folder

leave_current_folder(Path(__file__).parent)

import signal  # noqa: E402
import sys  # noqa: E402

_before = signal.getsignal(signal.SIGINT)
if _before is signal.default_int_handler:  # a process in the background may ignore it
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from settle import overview  # noqa: E402

if sys.argv[1:] in overview.ASKED:
    from settle.overview import main
else:
    from settle.cli import main_of_process as main

signal.signal(signal.SIGINT, _before)


if __name__ == "__main__":
    raise SystemExit(main())
