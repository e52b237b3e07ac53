"""Socket addresses as the kernel has them, and what is written down of them.

Python's own library only: the watching process loads this file by its path.
"""

import contextlib
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

Address = dict[str, Any]  # scope, address, and port or family: what JSON knows
INET, INET6, UNIX, NETLINK = 2, 10, 1, 16
DNS = 53
RESOLVERS = ("/run/systemd/resolve/", "/run/nscd/", "/var/run/nscd/", "/run/dnsmasq")  # sockets that look names up
RESOLV_CONF = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")  # the second: whom systemd-resolved asks
MOST_QUESTION = 512  # bytes of a question to a name server over UDP
MOST_CONTROL = 1 << 17  # bytes of a message's options that are read
_OPT, _COOKIE_BYTES = 41, 44  # the record of a question's options, and the most that they take


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
    """Whether only this machine can connect to where a process listens."""
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
