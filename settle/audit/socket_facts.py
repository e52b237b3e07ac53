"""Socket addresses as the kernel has them, and what is written down of them.

Python's own library only: the watching process loads this file by its path.
"""

import contextlib
import ctypes
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypedDict

INET, INET6, UNIX, NETLINK = 2, 10, 1, 16
DNS = 53
RESOLVERS = ("/run/systemd/resolve/", "/run/nscd/", "/var/run/nscd/", "/run/dnsmasq")  # sockets that look names up
RESOLV_CONF = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")  # the second: whom systemd-resolved asks
MOST_QUESTION = 512  # bytes of a question to a name server over UDP
MOST_CONTROL = 1 << 17  # bytes of a message's options that are read
_OPT, _COOKIE_BYTES = 41, 44  # the record of a question's options, and the most that they take


class Address(TypedDict, total=False):
    """What JSON has of an address; a family where it has no port."""

    scope: str
    address: str
    port: int | str
    family: str


def described(raw: bytes, domain: int | None) -> Address | None:
    """Return a socket address as it is written down; None for one that means "nowhere".

    domain: the family of the socket that sends to it, which decides where the address has none of its own; None for
    `connect`, where such an address dissolves a connection.
    """
    family = struct.unpack_from("=H", raw)[0] if len(raw) >= 2 else 0
    if family == 0 and domain is not None and len(raw) >= 2:
        family = domain  # for old programs: udp_sendmsg, raw_sendmsg, inet_bind
    if family == INET and len(raw) >= 8:
        return internet(socket.inet_ntop(INET, raw[4:8]), struct.unpack_from("!H", raw, 2)[0])
    if family == INET6 and len(raw) >= 24:
        return internet(socket.inet_ntop(INET6, raw[8:24]), struct.unpack_from("!H", raw, 2)[0])
    if family == UNIX:
        path = raw[2:]
        text = path[1:] if path[:1] == b"\0" else path.split(b"\0")[0]
        name = ("@" if path[:1] == b"\0" else "") + text.decode("utf-8", "replace")
        is_resolver = name.startswith(RESOLVERS) and os.access(name, os.F_OK)
        return {"scope": "resolver" if is_resolver else "unix", "address": name, "family": "unix"}
    if family in (0, NETLINK):  # a connection is given up; a question to the kernel
        return None
    return {"scope": "beyond", "address": raw.hex(), "family": f"family {family}"}


def internet(address: str, port: int) -> Address:
    ip = _ip(address)
    if ip.is_loopback or ip.is_unspecified:
        scope = "resolver" if port == DNS else "loopback"
    elif port == DNS:
        scope = "resolver" if str(ip) in name_servers() else "beyond"
    else:
        scope = "own" if str(ip) in own_addresses() else "beyond"
    return {"scope": scope, "address": str(ip), "port": port}


def own_addresses() -> set[str]:
    """Addresses of this machine's own interfaces: what goes to them stays here."""
    found = set()
    with contextlib.suppress(OSError), open("/proc/net/fib_trie") as f:
        before = ""
        for line in f:
            if "/32 host LOCAL" in line:
                found.add(before)
            before = line.split()[-1]
    with contextlib.suppress(OSError), open("/proc/net/if_inet6") as f:
        found |= {str(ipaddress.ip_address(bytes.fromhex(line.split()[0]))) for line in f}
    return found


def name_servers() -> set[str]:
    """Addresses that this machine's settings name for questions about names."""
    found = set()
    for path in RESOLV_CONF:
        with contextlib.suppress(OSError, UnicodeDecodeError), open(path, encoding="utf-8") as f:
            for line in f:
                words = line.split()
                if len(words) > 1 and words[0] == "nameserver":
                    with contextlib.suppress(ValueError):
                        found.add(str(ipaddress.ip_address(words[1].partition("%")[0])))
    return found


def is_local(address: Address) -> bool:
    """Return whether only this machine can connect to where a process listens."""
    if address.get("family") == "unix":
        return True
    try:
        return _ip(address["address"]).is_loopback
    except (KeyError, ValueError):
        return False


def _ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    ip = ipaddress.ip_address(address.partition("%")[0])
    return getattr(ip, "ipv4_mapped", None) or ip


def asked_name(payload: bytes, size: int) -> str | None:
    """Return the name that a DNS query asks for; None for anything else, which may carry more than a query.

    payload: its beginning; size: bytes of all of it.
    """
    for start in (0, 2):  # over TCP its length comes first
        name = _asked_name(payload[start:])
        if name is not None and size == len(payload) <= MOST_QUESTION:
            return name
    return None


def _asked_name(question: bytes) -> str | None:
    """RFC 1035, section 4.1: a header, one name with its type and class, and at most one record of options."""
    if len(question) < 12:
        return None
    _, flags, *counts = struct.unpack_from("!HHHHHH", question)
    if flags & 0xF80F or counts[:3] != [1, 0, 0] or counts[3] > 1:
        return None
    labels, at = [], 12
    while at < len(question) and 0 < question[at] <= 63 and at + question[at] < len(question):
        labels.append(question[at + 1 : at + 1 + question[at]])
        at += 1 + question[at]
    if not labels or question[at : at + 1] != b"\0" or not all(label.isascii() for label in labels):
        return None
    rest = question[at + 5 :]  # after the end of the name, its type and its class
    if counts[3] and len(rest) >= 11:  # the root's name, type, size, flags, length
        kind, length = struct.unpack_from("!H", rest, 1)[0], struct.unpack_from("!H", rest, 9)[0]
        rest = rest[11 + length :] if rest[0] == 0 and kind == _OPT and length <= _COOKIE_BYTES else rest
    return b".".join(labels).decode("ascii").lower() if not rest else None


Sent = tuple[bytes | None, bytes, int, list[tuple[int, int]]]


def sent(read: Callable[[int, int], bytes], call: str, args: list[int], is_query: bool) -> Iterator[Sent]:
    """Yield the destination, the beginning, the size and the options of each message of a call.

    The options are pairs of level and type. No address: it goes where the socket is connected to; such a message is
    yielded when it is a DNS query and, with an empty address, when it has options. read: returns bytes of the caller's
    memory, from its address and size.
    """
    if call == "connect":
        yield read(args[1], min(args[2] & 0xFFFFFFFF, 128)), b"", 0, []
    elif call == "sendto":
        yield read(args[4], min(args[5] & 0xFFFFFFFF, 128)), read(args[1], min(args[2], MOST_QUESTION)), args[2], []
    else:
        size, num = (56, 1) if call == "sendmsg" else (64, min(args[2] & 0xFFFFFFFF, 1024))
        for i in range(num):
            header = struct.unpack("=QIIQQQQ", read(args[1] + i * size, 48))
            name, length, _, vectors, num_vectors, control, control_size = header
            options = options_of(read(control, min(control_size, MOST_CONTROL))) if control and control_size else []
            if name or is_query or options:
                at, part = struct.unpack("=QQ", read(vectors, 16)) if num_vectors else (0, 0)
                payload = read(at, min(part, MOST_QUESTION)) if part else b""
                whole = part if num_vectors == 1 else -1  # a question to a name server is in one piece
                address = read(name, min(length, 128)) if name else None if is_query else b""
                yield address, payload, whole, options


def options_of(control: bytes) -> list[tuple[int, int]]:
    """Level and type of each option of a message (struct cmsghdr)."""
    found, at = [], 0
    while at + 16 <= len(control):
        length, level, kind = struct.unpack_from("=Qii", control, at)
        if length < 16:
            break
        found.append((level, kind))
        at += length + 7 & ~7
    return found


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
    """Return the facts of a thread's descriptor. Raises OSError where it is no socket, or may not be seen."""
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
