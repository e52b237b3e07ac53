"""Command lines of child processes that run Python: they import nothing from the folder a command is started in.

`python -m` puts that folder first on the module path, so a downloaded folder with a `json.py` would run its code. Every
child is started through this module; tests/test_house.py holds that.
"""

import os
import sys
from pathlib import Path


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module."""
    return [sys.executable, "-P", "-m", module, *arguments]


def script_command(script: Path, *arguments: str, isolated: bool = False) -> list[str]:
    """Return the command line that runs a file, without its folder on the module path.

    isolated: with Python's own library only, and without Python's environment variables."""
    return [sys.executable, *(("-I", "-S") if isolated else ("-P",)), str(script), *arguments]


def leave_current_folder(package: Path) -> None:
    """Take the current folder off the module path of this process and its children.

    `python -m` or an empty element of PYTHONPATH put it there. package: settle's own folder; the folder that it is
    imported from stays."""
    folder, searched = str(Path.cwd()), os.environ.get("PYTHONPATH", "").split(os.pathsep)
    named = [element for element in searched if element]
    if "PYTHONPATH" in os.environ:
        os.environ["PYTHONPATH"] = os.pathsep.join(named)
    if package.parent != Path(folder) and folder not in map(os.path.abspath, named):
        sys.path[:] = [place for place in sys.path if place not in ("", folder)]
