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
from pathlib import Path

from settle.audit import system_calls
from settle.audit.empty_network import enter_empty_network
from settle.base.child.python_command import script_command

ASKS = False  # whether the watcher reads no memory but ours, as if Yama forbade it: for tests
READY_SECONDS = 20.0  # for the watching process to start


class NotWatchedError(Exception):
    """Why the calls of this process cannot be watched."""


def watch_this_process(ledger: int, offline: bool) -> int:
    """From now on every network call of this process and of all that it starts is written to a file before it is
    carried out. Returns a descriptor to read: the lines about what goes beyond this machine.

    ledger: descriptor of the file. offline: the network is made empty first. Raises NotWatchedError.
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
                    "asks": ASKS,
                    "pid": os.getpid(),
                    "probe": probe.raw.decode(),
                    "probe_at": ctypes.addressof(probe),
                }
                ours.settimeout(READY_SECONDS)
                ours.sendall(json.dumps(task).encode())
                if ours.recv(8) != b"yes":
                    raise NotWatchedError("no process may read another one's memory here")
                _hand_over(abi, ours, offline)
                ours.recv(16)
                ours.settimeout(None)
                closing.pop_all()
            except OSError as e:
                is_busy = e.errno == errno.EBUSY
                raise NotWatchedError("another filter watches this process already" if is_busy else str(e)) from None
            finally:
                if watcher is not None:
                    watcher.returncode = 0  # it ends after us: nobody waits for it
        failing.pop_all()
    if system_calls.adopt_orphans_under_yama() or ASKS:
        threading.Thread(target=_read_for_watcher, args=(ours,), name="audit memory", daemon=True).start()
    else:
        ours.close()
    return heard


def _read_for_watcher(channel: socket.socket) -> None:
    """Reads memory of our children for the watcher, where only ancestors of a process may."""
    with contextlib.suppress(OSError):  # it has ended
        while request := channel.recv(64):
            pid, at, size = struct.unpack("=IQI", request)
            try:
                with open(f"/proc/{pid}/mem", "rb", 0) as memory:
                    memory.seek(at)
                    answer = b"+" + memory.read(size)
            except (OSError, ValueError):
                answer = b"-"
            channel.send(answer)


def _start(channel: socket.socket, ledger: int, alarm: int) -> subprocess.Popen[bytes]:
    """The watching process; its ends of the channel and of the pipe are closed here."""
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


def _hand_over(abi: system_calls.Abi, channel: socket.socket, is_fenced: bool) -> None:
    """Puts the filter on this thread and sends its descriptor to the watcher. Raises OSError.

    A second thread sends it: the call is one that the filter holds back until somebody watches.
    """
    fd, is_set = -1, threading.Event()

    def send() -> None:
        is_set.wait()
        if fd >= 0:
            socket.send_fds(channel, [b"f"], [fd])

    sender = threading.Thread(target=send)
    sender.start()
    try:
        fd = system_calls.install_filter(abi, system_calls.filter_program(abi, is_fenced))
    finally:
        is_set.set()
        sender.join()
        if fd >= 0:
            os.close(fd)
