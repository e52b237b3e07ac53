"""Python's own audit hook: host names and the lines of code that connect. All there is at level *observed*."""

import os
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Line = dict[str, object]
_SKIPPED = (sysconfig.get_path("stdlib"), __file__)  # the site is who called these
_PACKAGES = (sysconfig.get_path("purelib"), str(Path(__file__).parents[2]))  # named from there on
MOST_SITES = 10_000  # different ones that are written down
_EVENTS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto", "subprocess.Popen")


class Hook:
    """Says what Python's sockets do. write: takes a line of the ledger; None while there is none, since an audit hook
    cannot be taken away again."""

    def __init__(self) -> None:
        self.write: Callable[[Line], None] | None = None
        self._asked = threading.local()
        self._seen: set[tuple[object, ...]] = set()
        self._latest: dict[object, str] = {}  # by port: asyncio asks in another thread than it connects in
        sys.addaudithook(self._see)

    def open(self, write: Callable[[Line], None]) -> None:
        """A ledger begins."""
        self._seen.clear()
        self.write = write

    def _see(self, event: str, args: tuple[object, ...]) -> None:
        if self.write is None or event not in _EVENTS or getattr(self._asked, "is_busy", False):
            return
        self._asked.is_busy = True
        try:
            self._note(event, args)
        except (OSError, ValueError, TypeError, IndexError):
            pass  # a hook that raises would stop the call that it sees
        finally:
            self._asked.is_busy = False

    def _note(self, event: str, args: tuple[object, ...]) -> None:
        if event in ("socket.getaddrinfo", "socket.gethostbyname"):
            host, port = _text(args[0]), args[1] if len(args) > 1 else None
            self._latest[port] = "" if _is_address(host) else host
            if host and not _is_address(host) and host != "localhost":
                self._say({"kind": "name", "host": host, "site": _site()})
        elif event == "subprocess.Popen":
            self._say({"kind": "start", "program": _text(args[0])})
        elif isinstance(args[-1], tuple) and len(args[-1]) >= 2:
            address, port = _text(args[-1][0]), args[-1][1]
            host = self._latest.get(port, "")
            site = {"kind": "site", "call": event.partition(".")[2], "address": address, "port": port,
                    "host": "" if host == address or address.startswith("127.") else host, "site": _site()}  # fmt: skip
            key = tuple(site.values())
            if key not in self._seen and len(self._seen) < MOST_SITES:
                self._seen.add(key)
                self._say(site)

    def _say(self, line: Mapping[str, object]) -> None:
        assert self.write is not None
        ours = {"pid": os.getpid(), "tid": threading.get_native_id()}
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
