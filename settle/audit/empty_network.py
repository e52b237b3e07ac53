"""A network namespace with nothing but its own loopback: what runs in it can connect to nothing beyond it.

Sources: network_namespaces(7), user_namespaces(7), netdevice(7).
"""

import contextlib
import ctypes
import os
import socket
import struct
from pathlib import Path

with contextlib.suppress(ImportError):  # Windows, where none of this is called
    import fcntl

_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
_GET_FLAGS, _SET_FLAGS, _IS_UP = 0x8913, 0x8914, 1  # ioctls of network interfaces; IFF_UP
_SET_DUMPABLE = 4  # prctl


def enter_empty_network() -> None:
    """Move this process, which must have one thread, into an empty network. Raises OSError where that is forbidden.

    Who may not make a network namespace makes it within a user namespace, in which only their own user exists.
    """
    user, group = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NETWORK):
        if libc.unshare(_NEW_USER | _NEW_NETWORK):
            raise OSError(ctypes.get_errno(), f"no network namespace can be made ({os.strerror(ctypes.get_errno())})")
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
        libc.prctl(_SET_DUMPABLE, 1, 0, 0, 0)  # or the watcher could not read our memory
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = fcntl.ioctl(any_socket, _GET_FLAGS, struct.pack("16sH14x", b"lo", 0))
        flags = struct.unpack("16xH14x", request)[0]
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sH14x", b"lo", flags | _IS_UP))
