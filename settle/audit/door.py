"""The one way into an empty network: a port that was opened before it was empty, for programs of this machine."""

import errno
import ipaddress
import socket

from settle.base.errors import UsageError

MOST_CONNECTIONS = 2048  # at the same time
_doors: dict[tuple[str, int], socket.socket] = {}


def open_door(host: str, port: int) -> str:
    """Listen in the network of this machine; `listen` hands the socket over. Returns the address. Raises UsageError."""
    if not _is_loopback(host):
        raise UsageError("--offline serves programs of this machine only", "leave --host out, or --offline")
    opened = _doors[host, port] = _opened(host, port)
    return f"{host}:{opened.getsockname()[1]}"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket to serve on; port 0 takes a free one. Raises UsageError."""
    return _doors.pop((host, port), None) or _opened(host, port)


def is_open_in_empty_network(host: str, port: int) -> bool:
    """Return whether `listen` will hand over a socket of the machine's network to a process that has none."""
    return (host, port) in _doors


def _opened(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as e:
        listening.close()
        if getattr(e, "errno", None) == errno.EADDRINUSE:
            message = f"port {port} is in use, perhaps by another `settle serve` or `settle studio`"
            raise UsageError(message, "stop that server, or give another --port") from None
        message = f"cannot listen on {host}:{port}: {getattr(e, 'strerror', e)}"
        raise UsageError(message, "give another --host or --port") from None
    listening.listen(MOST_CONNECTIONS)
    return listening


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
