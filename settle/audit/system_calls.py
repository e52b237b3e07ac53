"""Linux by number: the calls that reach a network, and the seccomp filter that reports each before it is carried out.

Sources: seccomp(2), seccomp_unotify(2), linux/seccomp.h, linux/audit.h, the kernel's tables of system calls.
"""

import contextlib
import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
PR_SET_NO_NEW_PRIVS, PR_SET_CHILD_SUBREAPER, PR_SET_PTRACER = 38, 36, 0x59616D61
_SET_MODE_FILTER, _GET_NOTIF_SIZES = 1, 3
# Without SPEC_ALLOW older kernels slow the whole process down; with WAIT_KILLABLE a signal does not repeat the call.
_SPEC_ALLOW, _NEW_LISTENER, _WAIT_KILLABLE = 1 << 2, 1 << 3, 1 << 5
_ALLOW, _NOTIFY, _ERRNO = 0x7FFF0000, 0x7FC00000, 0x00050000
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06  # BPF: ld [k], and, jeq, jge, ret
_NR, _ARCH, _ARGS = 0, 4, 16  # offsets in struct seccomp_data
SLICE_NS = 100_000  # the shortest slice that the scheduler gives
_X32 = 0x40000000  # set in the numbers of the x32 ABI


@dataclass(frozen=True)
class Abi:
    """The numbers of one processor's kernel interface.

    compat: its 32-bit sibling's network calls, which are refused: nothing that settle starts is a 32-bit program.
    """

    audit_arch: int
    seccomp: int
    sched_setattr: int
    calls: dict[str, int]
    compat: tuple[int, ...]


_X86_64 = Abi(
    0xC000003E,
    317,
    314,
    {"socket": 41, "connect": 42, "sendto": 44, "sendmsg": 46, "listen": 50, "sendmmsg": 307, "setsockopt": 54,
     "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "setns": 308,
     "pidfd_getfd": 438, "ptrace": 101, "process_vm_writev": 311},
    (102, 345, 359, 361, 362, 363, 369, 370, 425, 426, 427),
)  # fmt: skip
_AARCH64 = Abi(
    0xC00000B7,
    277,
    274,
    {"socket": 198, "connect": 203, "sendto": 206, "sendmsg": 211, "listen": 201, "sendmmsg": 269, "setsockopt": 208,
     "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "setns": 268,
     "pidfd_getfd": 438, "ptrace": 117, "process_vm_writev": 271},
    (281, 282, 283, 284, 290, 296, 374, 425, 426, 427),
)  # fmt: skip
ABIS = {"x86_64": _X86_64, "aarch64": _AARCH64}

REPORTED = ("connect", "listen", "sendmsg", "sendmmsg", "io_uring_setup", "io_uring_enter", "io_uring_register")
# Options that lead a packet to another first hop than its address says: IP_OPTIONS, IPV6_RTHDR, IPV6_2292RTHDR and
# IPV6_2292PKTOPTIONS, each with its level.
SOURCE_ROUTES = ((0, 4), (41, 57), (41, 5), (41, 6))
# Options that send word to a group of machines that this one has joined: IP_ADD_MEMBERSHIP and its sisters.
_GROUPS = ((0, 35), (0, 39), (0, 42), (0, 46), (41, 20), (41, 27), (41, 42), (41, 46))
# Kinds and protocols of sockets whose every address is seen. Others, as SCTP, connect by options; a raw one writes the
# address itself.
_KINDS, _PROTOCOLS = (1, 2), (0, 1, 6, 17, 58, 136, 262)  # streams, datagrams; ICMP, TCP, UDP, ICMPv6, UDP-Lite, MPTCP
# Ways out of an empty network namespace: into another one, or through a process outside it.
WAYS_OUT = ("setns", "pidfd_getfd", "ptrace", "process_vm_writev")


def native_abi() -> Abi | None:
    """Return the numbers of this process's kernel interface; None where there is no filter for it."""
    is_64_bit = struct.calcsize("P") == 8
    return ABIS.get(platform.machine()) if sys.platform == "linux" and is_64_bit else None


def filter_program(abi: Abi, is_fenced: bool, asks: bool = False) -> bytes:
    """Return the BPF program that reports network calls with an address and allows others.

    is_fenced: the process is in an empty namespace, and the ways out of it are refused. asks: this process looks at its
    children's sockets for its watcher, and must not wait for that one meanwhile.
    """
    p = _Program()
    p.load(_ARCH)
    p.jump(_EQUAL, abi.audit_arch, no="foreign")
    p.load(_NR)
    if abi is _X86_64:
        p.jump(_AT_LEAST, _X32, yes="x32")
    for name in REPORTED:
        p.jump(_EQUAL, abi.calls[name], yes="report")
    for name in WAYS_OUT:
        if is_fenced or not (asks and name == "pidfd_getfd"):
            p.jump(_EQUAL, abi.calls[name], yes="refuse" if is_fenced else "report")
    p.jump(_EQUAL, abi.calls["setsockopt"], yes="setsockopt")
    p.jump(_EQUAL, abi.calls["sendto"], yes="sendto")
    p.jump(_EQUAL, abi.calls["socket"], yes="socket", no="allow")
    p.label("sendto")  # without an address it goes where `connect` went
    p.load(_ARGS + 4 * 8)
    p.jump(_EQUAL, 0, no="report")
    p.load(_ARGS + 4 * 8 + 4)
    p.jump(_EQUAL, 0, yes="allow", no="report")
    _judge_option(p)
    _judge_socket(p, is_fenced)
    p.label("x32")
    p.jump(_EQUAL, 0xFFFFFFFF, yes="allow", no="report")  # a call that a debugger has skipped
    p.label("foreign")
    p.load(_NR)
    for number in abi.compat:
        p.jump(_EQUAL, number, yes="report")
    p.label("allow")
    p.answer(_ALLOW)
    p.label("report")
    p.answer(_NOTIFY)
    p.label("refuse")
    p.answer(_ERRNO | errno.EPERM)
    return p.assemble()


def _judge_option(p: "_Program") -> None:
    """Allow a socket's options, but for those that lead elsewhere."""
    p.label("setsockopt")
    p.load(_ARGS + 8)
    for level in (0, 41):
        p.jump(_EQUAL, level, yes=f"options of {level}")
    p.jump(_AT_LEAST, 0, yes="allow")
    for level in (0, 41):
        p.label(f"options of {level}")
        p.load(_ARGS + 2 * 8)
        for at, option in (*SOURCE_ROUTES, *_GROUPS):
            if at == level:
                p.jump(_EQUAL, option, yes="report")
        p.jump(_AT_LEAST, 0, yes="allow")


def _judge_socket(p: "_Program", is_fenced: bool) -> None:
    """Sockets whose every address is seen are allowed."""
    p.label("socket")
    p.load(_ARGS)
    # a file of a socket is no part of a network namespace: in an empty one nothing but the network itself is allowed
    for family in (AF_NETLINK, *(() if is_fenced else (AF_UNIX,))):
        p.jump(_EQUAL, family, yes="allow")
    p.jump(_EQUAL, AF_INET, yes="internet")
    p.jump(_EQUAL, AF_INET6, yes="internet", no="report")
    p.label("internet")
    p.load(_ARGS + 8)
    p.keep(15)  # its kind, without SOCK_NONBLOCK and SOCK_CLOEXEC
    for kind in _KINDS:
        p.jump(_EQUAL, kind, yes="protocol")
    p.jump(_AT_LEAST, 0, yes="report")
    p.label("protocol")
    p.load(_ARGS + 2 * 8)
    for protocol in _PROTOCOLS:
        p.jump(_EQUAL, protocol, yes="allow")
    p.jump(_AT_LEAST, 0, yes="report")


class _Program:
    """A BPF program with names for the targets of its jumps, all of them forward."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, str | None, str | None]] = []
        self._labels: dict[str, int] = {}

    def load(self, offset: int) -> None:
        self._code.append((_LOAD, offset, None, None))

    def keep(self, bits: int) -> None:
        self._code.append((_AND, bits, None, None))

    def jump(self, test: int, value: int, yes: str | None = None, no: str | None = None) -> None:
        """To a label, or on to the next instruction."""
        self._code.append((test, value, yes, no))

    def answer(self, value: int) -> None:
        self._code.append((_RETURN, value, None, None))

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def assemble(self) -> bytes:
        """Eight bytes an instruction: code, jump if true, jump if false, value."""
        lines = []
        for at, (code, value, yes, no) in enumerate(self._code):
            jumps = [0 if name is None else self._labels[name] - at - 1 for name in (yes, no)]
            lines.append(struct.pack("HBBI", code, *jumps, value))
        return b"".join(lines)


def install_filter(abi: Abi, program: bytes) -> int:
    """From now on this thread, and every thread and process it starts, has the filter; it cannot be taken off.

    Returns the descriptor that the reports come from. Raises OSError: EBUSY where another filter reports already.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(program, len(program))
    descriptor = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    for flags in (_NEW_LISTENER | _SPEC_ALLOW | _WAIT_KILLABLE, _NEW_LISTENER | _SPEC_ALLOW):
        fd: int = libc.syscall(*_longs(abi.seccomp, _SET_MODE_FILTER, flags), descriptor)
        if fd >= 0:
            return fd
        if ctypes.get_errno() != errno.EINVAL:  # a kernel before 5.19 does not know the third flag
            break
    raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")


def notification_sizes(abi: Abi) -> tuple[int, int]:
    """Bytes of a report and of its answer, as this kernel has them. Raises OSError where it has none."""
    libc = ctypes.CDLL(None, use_errno=True)
    sizes = ctypes.create_string_buffer(6)
    if libc.syscall(*_longs(abi.seccomp, _GET_NOTIF_SIZES, 0), sizes):
        raise OSError(ctypes.get_errno(), "seccomp")
    report, answer, _ = struct.unpack("HHH", sizes.raw)
    return report, answer


def allow_reader(pid: int) -> None:
    """Allow a process to read our memory where Yama restricts who may; elsewhere it may already."""
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, pid, 0, 0, 0)


def adopt_orphans_under_yama() -> bool:
    """Return whether only ancestors of a process may read its memory; then we stay one of all that we start."""
    with contextlib.suppress(OSError, ValueError):
        if int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text(encoding="ascii")) > 0:
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            return True
    return False


def shorten_slice(abi: Abi, pid: int) -> None:
    """Schedule the process in short slices, so that it runs soon after it wakes, also on a busy machine.

    Needs Linux 6.12; elsewhere nothing happens.
    """
    attributes = struct.pack("=IIQiIQQQ", 48, 0, 0, os.getpriority(os.PRIO_PROCESS, pid), 0, SLICE_NS, 0, 0)
    ctypes.CDLL(None).syscall(*_longs(abi.sched_setattr, pid), attributes, ctypes.c_long(0))


def num_threads() -> int:
    """Threads of this process, of any kind; 1 where the system does not say."""
    if sys.platform != "linux":
        return 1
    return len(list(Path("/proc/self/task").iterdir()))


def _longs(*values: int) -> Sequence[ctypes.c_long]:
    return [ctypes.c_long(value) for value in values]
