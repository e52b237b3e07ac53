"""Starts the process that watches this one, and puts the filter on this one."""

import contextlib
import ctypes
import errno
import json
import os
import secrets
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import astuple
from pathlib import Path

from settle.audit import system_calls
from settle.audit.socket_facts import facts_of
from settle.base.python_command import script_command

ASKS = False  # whether the watcher reads no memory but ours, as if Yama forbade it: for tests
BUSY = "another program watches it already; if the studio started it, `settle runs audit studio` has what it reached"
READY_SECONDS = 20.0  # for the watching process to start


class NotWatchedError(Exception):
    """Why the calls of this process cannot be watched."""


def watch_this_process(ledger: int, offline: bool) -> int:
    """Write every network call of this process and of its children to a file before it is carried out.

    Returns a descriptor to read: the lines about what goes beyond this machine. ledger: descriptor of the file.
    offline: the network is made empty first. Raises NotWatchedError.
    """
    abi = system_calls.native_abi()
    if abi is None:
        raise NotWatchedError(f"there are no notifications of network calls on {sys.platform}, {os.name}")
    if system_calls.num_threads() > 1:
        raise NotWatchedError("threads of this process were running before")
    try:
        sizes = system_calls.notification_sizes(abi)
    except OSError:
        raise NotWatchedError("this kernel or container has no notifications of network calls") from None
    asks = system_calls.adopt_orphans_under_yama() or ASKS
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    heard, alarm = os.pipe()
    with contextlib.ExitStack() as failing:
        failing.callback(os.close, heard)
        with contextlib.ExitStack() as closing:
            closing.callback(ours.close)
            watcher = None
            try:
                watcher = _start(theirs, ledger, alarm)
                if offline:  # the watcher stays outside, where it may read our memory
                    enter_empty_network()
                system_calls.allow_reader(watcher.pid)
                system_calls.shorten_slice(abi, watcher.pid)
                probe = ctypes.create_string_buffer(secrets.token_hex(8).encode(), 16)
                task = {
                    "calls": abi.calls,
                    "arch": abi.audit_arch,
                    "sizes": sizes,
                    "is_fenced": offline,
                    "routes": system_calls.SOURCE_ROUTES,
                    "asks": ASKS,  # otherwise it asks where it is refused
                    "pid": os.getpid(),
                    "probe": probe.raw.decode(),
                    "probe_at": ctypes.addressof(probe),
                }
                ours.settimeout(READY_SECONDS)
                ours.sendall(json.dumps(task).encode())
                if ours.recv(8) != b"yes":
                    raise NotWatchedError("no process may read another one's memory here")
                _hand_over(abi, ours, offline, asks)
                ours.recv(16)
                ours.settimeout(None)
                closing.pop_all()
            except OSError as e:
                raise NotWatchedError(BUSY if e.errno == errno.EBUSY else str(e)) from None
            finally:
                if watcher is not None:
                    watcher.returncode = 0  # it ends after us: nobody waits for it
        failing.pop_all()
    if asks:
        threading.Thread(target=_read_for_watcher, args=(ours,), name="audit memory", daemon=True).start()
    else:
        ours.close()
    return heard


def _read_for_watcher(channel: socket.socket) -> None:
    """Read memory and sockets of our children for the watcher, where only ancestors of a process may."""
    with contextlib.suppress(OSError):  # it has ended
        while request := channel.recv(64):
            tid, pid, at, size = struct.unpack("=IIQI", request)
            try:
                if size:
                    with open(f"/proc/{tid}/mem", "rb", 0) as memory:
                        memory.seek(at)
                        answer = b"+" + memory.read(size)
                else:
                    answer = b"+" + json.dumps(astuple(facts_of(pid, tid, at))).encode()
            except (OSError, ValueError):
                answer = b"-"
            channel.send(answer)


def _start(channel: socket.socket, ledger: int, alarm: int) -> subprocess.Popen[bytes]:
    """Start the watching process; its ends of the channel and of the pipe are closed here."""
    fds = channel.fileno(), ledger, alarm
    script = Path(__file__).with_name("watcher_child.py")
    nowhere = subprocess.DEVNULL
    try:
        return subprocess.Popen(
            script_command(script, *map(str, fds), isolated=True),
            stdin=nowhere,
            stdout=nowhere,
            stderr=nowhere,
            pass_fds=fds,
            start_new_session=True,  # Ctrl-C is for us
        )
    finally:
        channel.close()
        os.close(alarm)


def _hand_over(abi: system_calls.Abi, channel: socket.socket, is_fenced: bool, asks: bool) -> None:
    """Install the filter on this thread and send its descriptor to the watcher. Raises OSError.

    A second thread sends it: the filter holds that call back until somebody watches.
    """
    fd, is_set = -1, threading.Event()

    def send() -> None:
        is_set.wait()
        if fd >= 0:
            socket.send_fds(channel, [b"f"], [fd])

    sender = threading.Thread(target=send)
    sender.start()
    try:
        fd = system_calls.install_filter(abi, system_calls.filter_program(abi, is_fenced, asks))
    finally:
        is_set.set()
        sender.join()
        if fd >= 0:
            os.close(fd)


with contextlib.suppress(ImportError):  # Windows, where none of this is called
    import fcntl

_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
_GET_FLAGS, _SET_FLAGS, _IS_UP = 0x8913, 0x8914, 1  # ioctls of network interfaces; IFF_UP
_SET_DUMPABLE = 4  # prctl


def enter_empty_network() -> None:
    """Move this process, which must have one thread, into an empty network. Raises OSError where that is forbidden.

    What runs there can connect to nothing beyond its own loopback. Sources: network_namespaces(7),
    user_namespaces(7), netdevice(7).

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
