"""What a socket that was made elsewhere is, asked of the kernel: its family, and where it is bound and connected.

Python's own library only: the watching process loads this file by its path. Sources: pidfd_getfd(2), socket(7).
"""

import contextlib
import ctypes
import os
import socket
from dataclasses import dataclass, replace
from typing import Any

_PIDFD_GETFD = 438  # of every processor
_PIDFD_THREAD = os.O_EXCL  # Linux 6.9


@dataclass(frozen=True)
class SocketFacts:
    """What the system says of a socket.

    family: AF_INET and so on. bound, peer: address and port, or the name of a file; None where there is none.
    is_handed_down: this process inherited it.
    """

    family: int
    bound: tuple[str, int] | str | None
    peer: tuple[str, int] | str | None = None
    is_listening: bool = False
    is_handed_down: bool = False


def facts_of(pid: int, tid: int, fd: int) -> SocketFacts:
    """Of a descriptor of a thread. Raises OSError where it is none of a socket, or may not be seen."""
    for whose, flags in ((pid, 0), (tid, _PIDFD_THREAD)):  # a thread may have descriptors of its own
        with _copy(whose, flags, fd) as copied:
            if os.readlink(f"/proc/{tid}/fd/{fd}") == os.readlink(f"/proc/self/fd/{copied.fileno()}"):  # noqa: PTH115
                return facts_of_socket(copied)
    raise OSError(f"descriptor {fd} of thread {tid} is not the one of its process")


def facts_of_socket(one: socket.socket) -> SocketFacts:
    peer: Any = None
    with contextlib.suppress(OSError):  # it is not connected
        peer = one.getpeername()
    with contextlib.suppress(OSError):
        listens = bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        return SocketFacts(one.family, _address(one, one.getsockname()), _address(one, peer), listens)
    return SocketFacts(one.family, None)  # of a family without addresses


def _address(one: socket.socket, name: Any) -> tuple[str, int] | str | None:
    if one.family in (socket.AF_INET, socket.AF_INET6):
        return (str(name[0]), int(name[1])) if name and name[1] else None
    return str(name) if name else None


def own_sockets() -> dict[int, SocketFacts]:
    """Return the sockets of this process by descriptor; none where the system does not say."""
    found = {}
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  pathlib is slow to load
            with contextlib.suppress(OSError):  # the descriptor of the listing
                if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):  # noqa: PTH115
                    with socket.socket(fileno=os.dup(int(name))) as one:
                        # Python's own do not outlive an exec, so what outlives one was not made by this process
                        found[int(name)] = replace(facts_of_socket(one), is_handed_down=os.get_inheritable(int(name)))
    return found


@contextlib.contextmanager
def _copy(pid: int, flags: int, fd: int) -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(pid, flags)
    try:
        copied: int = libc.syscall(_PIDFD_GETFD, process, fd, 0)
    finally:
        os.close(process)
    if copied < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    with socket.socket(fileno=copied) as one:
        yield one
