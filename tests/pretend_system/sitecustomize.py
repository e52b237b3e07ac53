"""Lets settle's code, and nothing else, see the Python of Windows or macOS; PYTHONPATH brings it, into children too.

What is missing there is missing: modules, functions, signals, /proc. On Windows a child takes its flags and no group.
Paths, and what libraries see, stay those of this system. PRETEND: win32 or darwin; PRETEND_FOR: the package's folder.
"""

import builtins
import errno
import io
import os
import pathlib
import subprocess
import sys
import types

PACKAGE, PLATFORM = os.environ.get("PRETEND_FOR", ""), os.environ.get("PRETEND", "win32")
NO_MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"}
MISSING = {
    "os": {"fork", "forkpty", "killpg", "getpgid", "setsid", "geteuid", "getuid", "getegid", "getgid", "sysconf",
           "sched_getaffinity", "sched_setaffinity", "mkfifo", "statvfs", "getloadavg", "nice", "chown", "pread",
           "posix_fadvise", "uname", "O_NOFOLLOW", "O_DIRECTORY", "O_NONBLOCK"},
    "signal": {"SIGKILL", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGALRM", "SIGPROF", "SIGCHLD", "SIGPIPE", "alarm",
               "setitimer", "ITIMER_PROF", "pthread_sigmask", "pause"},
    "socket": {"AF_UNIX", "socketpair"},
    "select": {"poll", "epoll"},
}  # fmt: skip

if PLATFORM == "darwin":
    NO_MODULES = set()
    MISSING = {"os": {"sched_getaffinity", "sched_setaffinity", "posix_fadvise"}, "select": {"epoll"}}


class Child(subprocess.Popen):
    """A process that is started with the flag of a new group, as Windows takes it."""

    def __init__(self, *args, creationflags=0, process_group=None, start_new_session=False, **options):
        if options.get("preexec_fn") or options.get("pass_fds"):
            raise ValueError("Windows cannot do that")
        super().__init__(*args, **options)


class Without(types.ModuleType):
    """A module that lacks some names and has others."""

    def __init__(self, module, missing=(), **others):
        super().__init__(module.__name__)
        self.__dict__.update(_module=module, _missing=frozenset(missing), **others)

    def __getattr__(self, name):
        if name in self._missing:
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}' on Windows")
        return getattr(self._module, name)

    def __setattr__(self, name, value):
        setattr(self._module, name, value)


_import = builtins.__import__
_seen = {"sys": Without(sys, (), platform=PLATFORM), "os": Without(os, MISSING["os"])}
if PLATFORM == "win32":
    _seen["os"].__dict__["name"] = "nt"
    _seen["subprocess"] = Without(subprocess, (), Popen=Child)


def _pretending(name, globals=None, locals=None, fromlist=(), level=0):  # noqa: A002
    if level or not (globals and str(globals.get("__file__", "")).startswith(PACKAGE)):
        return _import(name, globals, locals, fromlist, level)
    if name.partition(".")[0] in NO_MODULES:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)
    module = _import(name, globals, locals, fromlist, level)
    if name in MISSING and name not in _seen:
        _seen[name] = Without(sys.modules[name], MISSING[name])
    return _seen.get(name, module)


def _hides(path):
    """Whether settle asks for what Linux's kernel shows as files; psutil may."""
    if isinstance(path, int) or not os.fsdecode(path).startswith(("/proc/", "/sys/")):
        return False
    frame = sys._getframe(2)
    while frame.f_code.co_filename in (pathlib.__file__, __file__):
        frame = frame.f_back
    return str(frame.f_globals.get("__file__", "")).startswith(PACKAGE)


def _without_kernel_files(opening):
    def opened(file, *args, **options):
        if _hides(file):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file)
        return opening(file, *args, **options)

    return opened


if PACKAGE:
    builtins.__import__ = _pretending
    builtins.open = io.open = _without_kernel_files(io.open)
    _exists = pathlib.Path.exists
    pathlib.Path.exists = lambda self: not _hides(self) and _exists(self)
