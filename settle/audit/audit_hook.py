"""Python's own audit hook: host names and the lines of code that connect. All there is at level *observed*."""

import functools
import os
import socket
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from settle.audit.reach import Line

_SKIPPED = (sysconfig.get_path("stdlib"), __file__)  # the site is who called these
_PACKAGES = (sysconfig.get_path("purelib"), str(Path(__file__).parents[2]))  # named from there on
MOST_SITES = 10_000  # different ones that are written down
_EVENTS = ("socket.connect", "socket.sendto", "subprocess.Popen")
# What looks a name up, and the addresses in what it returns.
_LOOKUPS: Mapping[str, Callable[[Any], Sequence[str]]] = {
    "getaddrinfo": lambda found: [entry[4][0] for entry in found],
    "gethostbyname": lambda found: [found],
    "gethostbyname_ex": lambda found: found[2],
}


class Hook:
    """Says what Python's sockets do, and which addresses a name was found to have: those alone are taken for its own.

    write: takes a line of the ledger; None while there is none, since an audit hook cannot be taken away again."""

    def __init__(self) -> None:
        self.write: Callable[[Line], None] | None = None
        self._asked = threading.local()
        self._seen: set[tuple[object, ...]] = set()
        self._hosts: dict[str, str] = {}  # the latest name of each address
        self._lookups: dict[str, Callable[..., Any]] = {}  # those that ours stand for
        sys.addaudithook(self._see)

    def open(self, write: Callable[[Line], None]) -> None:
        """Begin a ledger."""
        self._seen.clear()
        self._hosts.clear()
        self.write = write
        for name in _LOOKUPS:
            self._lookups[name] = getattr(socket, name)
            setattr(socket, name, self._watched(name))

    def close(self) -> None:
        """End the ledger."""
        self.write = None
        for name, lookup in self._lookups.items():
            if getattr(getattr(socket, name), "__wrapped__", None) is lookup:  # nobody has put another in its place
                setattr(socket, name, lookup)
        self._lookups.clear()

    def _watched(self, name: str) -> Callable[..., Any]:
        lookup, addresses_in = self._lookups[name], _LOOKUPS[name]

        @functools.wraps(lookup)
        def watched(host: object, *args: object, **options: object) -> object:
            found = None
            try:
                found = lookup(host, *args, **options)
                return found
            finally:
                self._note_name(host, addresses_in(found) if found else ())

        return watched

    def _note_name(self, asked: object, addresses: Sequence[object]) -> None:
        host = _text(asked).lower()
        if self.write is None or not host or _is_address(host) or host == "localhost":
            return
        known = sorted({str(address) for address in addresses})
        if len(self._hosts) < MOST_SITES:
            self._hosts |= dict.fromkeys(known, host)
        key = ("name", host, *known)
        if key not in self._seen and len(self._seen) < MOST_SITES:
            self._seen.add(key)
            self._say({"kind": "name", "host": host, "addresses": known, "site": _site()})

    def _see(self, event: str, args: tuple[object, ...]) -> None:
        if self.write is None or event not in _EVENTS or getattr(self._asked, "is_busy", False):
            return
        self._asked.is_busy = True
        try:
            self._note(event, args)
        except (OSError, ValueError, TypeError, LookupError):
            pass  # a hook that raises would stop the call that it sees
        finally:
            self._asked.is_busy = False

    def _note(self, event: str, args: tuple[object, ...]) -> None:
        if event == "subprocess.Popen":
            self._say({"kind": "start", "program": _text(args[0])})
        elif isinstance(args[-1], tuple) and len(args[-1]) >= 2:
            address, port = _text(args[-1][0]), args[-1][1]
            is_internet = getattr(args[0], "family", None) in (socket.AF_INET, socket.AF_INET6)
            if is_internet and not _is_address(address):  # looked up by the call itself, whose answer is not to be seen
                self._note_name(address, _LOOKUPS["getaddrinfo"](self._lookups["getaddrinfo"](address, port)))
            site: Line = {"kind": "site", "call": event.partition(".")[2], "address": address, "port": port,
                    "host": self._hosts.get(address, ""), "site": _site()}  # fmt: skip
            key = tuple(site.values())
            if key not in self._seen and len(self._seen) < MOST_SITES:
                self._seen.add(key)
                self._say(site)

    def _say(self, line: Line) -> None:
        if self.write is not None:
            ours: Line = {"pid": os.getpid(), "tid": threading.get_native_id()}
            self.write({"time": round(time.time(), 3), **line, **ours})


def _site() -> str:
    """file:line of the code outside Python's own sockets that brought this about."""
    frame, outermost = sys._getframe(3), sys._getframe(3)
    while frame.f_back and _is_skipped(frame.f_code.co_filename):
        frame = frame.f_back
    found = outermost if _is_skipped(frame.f_code.co_filename) else frame
    name = found.f_code.co_filename
    for folder in _PACKAGES:
        name = name.removeprefix(folder + os.sep)
    return f"{name if len(name) < len(found.f_code.co_filename) else Path(name).name}:{found.f_lineno}"


def _is_skipped(file: str) -> bool:
    return file.startswith(_SKIPPED) and not file.startswith(_PACKAGES[0])


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


def _is_address(host: str) -> bool:
    return host.replace(".", "").isdigit() or ":" in host
