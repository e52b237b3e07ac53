"""Confinement of this process: it reads some folders, writes no file, starts no program and opens no connection.

For a process that reads documents from elsewhere: a hole in a library is then no way to the account's other files. By
Landlock (Linux 5.13) and seccomp; where the kernel has neither, as on other systems, nothing is confined.
"""

import ctypes
import errno
import json
import os
import platform
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

# what Python and its libraries read themselves
_OF_THE_SYSTEM = (
    "/usr", "/lib", "/lib64", "/opt", "/etc/ld.so.cache", "/etc/localtime", "/etc/mime.types", "/etc/fonts",
    "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/sys/devices/system", "/dev/null", "/dev/zero",
    "/dev/urandom", "/dev/random",
)  # fmt: skip
_SETTLE = str(Path(__file__).parents[1])  # an editable install is not on the module path
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system calls, the same on every architecture
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
_HANDLED = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # number of kinds of access to files, by Landlock's version
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2  # of prctl
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EACCES
# by machine: how the kernel calls the architecture, and socket, connect, execve, execveat, ptrace, process_vm_readv,
# process_vm_writev, io_uring_setup, pidfd_getfd
_CALLS = {
    "x86_64": (0xC000003E, (41, 42, 59, 322, 101, 310, 311, 425, 438)),
    "aarch64": (0xC00000B7, (198, 203, 221, 281, 117, 270, 271, 425, 438)),
}
_X32 = 0x40000000  # system calls from here on are of another kind


def confine(roots: Iterable[str] | None) -> None:
    """Confine this process and those that it starts, for good.

    roots: folders and files that it may read in addition to what Python needs; None: all files, also to write.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return
    if roots is not None:
        _confine_files(libc, [*_OF_THE_SYSTEM, _SETTLE, sys.prefix, sys.base_prefix, *filter(None, sys.path), *roots])
    _refuse_calls(libc)


def roots_as(roots: Iterable[Path | str] | None) -> str:
    """Return roots as an argument in JSON of the child's command line."""
    return json.dumps(None if roots is None else [str(Path(root).absolute()) for root in roots])


def _confine_files(libc: ctypes.CDLL, paths: Iterable[str]) -> None:
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return
    handled = (1 << _HANDLED.get(version, max(_HANDLED.values()))) - 1
    ruleset = libc.syscall(_CREATE_RULESET, struct.pack("Q", handled), ctypes.c_size_t(8), 0)
    if ruleset < 0:
        return
    try:
        for path in dict.fromkeys(paths):
            _allow(libc, ruleset, path)
        libc.syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str) -> None:
    """Allow files at or below a path to be read; one that is not there is passed over."""
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        access = _READ_FILE | _EXECUTE | (_READ_DIR if Path(path).is_dir() else 0)
        libc.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", access, opened), 0)
    finally:
        os.close(opened)


def _refuse_calls(libc: ctypes.CDLL) -> None:
    """Let every call of `_CALLS`, and those of another architecture, fail with "permission denied"."""
    if platform.machine() not in _CALLS:
        return
    architecture, numbers = _CALLS[platform.machine()]
    load, jump_equal, jump_from, give = 0x20, 0x15, 0x35, 0x06
    refuse = len(numbers)  # steps from the first comparison of a number to the refusal, less one
    steps = [
        (load, 0, 0, 4),
        (jump_equal, 0, refuse + 3, architecture),
        (load, 0, 0, 0),
        (jump_from, refuse + 1, 0, _X32),
        *((jump_equal, refuse - at, 0, number) for at, number in enumerate(numbers)),
        (give, 0, 0, _ALLOW),
        (give, 0, 0, _REFUSE),
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    header = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program))
    libc.prctl(_SET_SECCOMP, _FILTER, ctypes.c_char_p(header), 0, 0)
