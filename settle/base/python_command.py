"""Command lines of child processes that run Python: they import nothing from the folder a command is started in.

`python -m` puts that folder first on the module path, so a downloaded folder with a `json.py` would run its code. Every
child is started through this module; tests/test_house.py holds that. Their streams are UTF-8 on every system.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

# For Popen's creationflags, beside its process_group or start_new_session, which Windows does not know: a Ctrl-C in the
# terminal is not meant for the child (CREATE_NEW_PROCESS_GROUP).
NEW_GROUP = 0x200 if os.name == "nt" else 0
DISTRIBUTION = "settle-lm"
_UTF_8 = ("-X", "utf8")


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module."""
    return [sys.executable, "-P", *_UTF_8, "-m", module, *arguments]


def script_command(script: Path, *arguments: str, isolated: bool = False) -> list[str]:
    """Return the command line that runs a file, without its folder on the module path.

    isolated: with Python's own library only, and without Python's environment variables."""
    return [sys.executable, *(("-I", "-S") if isolated else ("-P",)), *_UTF_8, str(script), *arguments]


def shell_line(*words: str | Path) -> str:
    """Return a command line that can be pasted into this system's shell."""
    texts = [str(word) for word in words]
    if os.name == "nt":
        import subprocess  # slow to import, as what the functions below import

        return subprocess.list2cmdline(texts)
    import shlex

    return shlex.join(texts)


def is_powershell() -> bool:
    """Return whether lines that are shown for pasting are PowerShell's, as on Windows, or those of a POSIX shell."""
    return os.name == "nt"


def with_variables(variables: Mapping[str, str], *words: str) -> str:
    """Return lines for this system's shell that run a command with variables of the environment.

    words: the program, then its arguments. PowerShell's window keeps the variables."""
    if is_powershell():
        lines = [f"$env:{name} = {powershell_string(value)}" for name, value in variables.items()]
        return "\n".join([*lines, " ".join([words[0], *map(powershell_string, words[1:])])]) + "\n"
    import shlex

    lines = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    return " \\\n  ".join([*lines, shlex.join(words)]) + "\n"


def powershell_string(text: str) -> str:
    """Return a text as a literal of PowerShell, which takes curly quotation marks for straight ones."""
    return "'" + "".join(2 * character if character in "'‘’‚‛" else character for character in text) + "'"


def extra_command(extra: str) -> str:
    """Return the command line that adds an extra to settle where it is, however it was installed.

    From an index, a wheel or a clone, by pip into this environment, or by pipx or uv as a tool of its own."""
    import json
    import shutil
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        origin = json.loads(distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        origin = {}
    address = urlsplit(str(origin.get("url", "")))
    source = url2pathname(address.path) if address.scheme == "file" else DISTRIBUTION
    wanted, environment = f"{source}[{extra}]", Path(sys.prefix)
    if (environment / "uv-receipt.toml").exists():
        return shell_line("uv", "tool", "install", "--force", wanted)
    if (environment / "pipx_metadata.json").exists():
        return shell_line("pipx", "install", "--force", wanted)
    beside = environment / ("Scripts" if os.name == "nt" else "bin") / ("pip.exe" if os.name == "nt" else "pip")
    is_active = shutil.which("pip") in (None, str(beside))
    options = ["-e"] if origin.get("dir_info", {}).get("editable") else []
    return shell_line("pip" if is_active else beside, "install", *options, wanted)


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
