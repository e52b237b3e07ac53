"""What a command may reach beyond this machine, said beforehand: usually nothing; and the names of what was reached."""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

DNS = 53
LOOKUP_SECONDS = 60.0  # in which a process connects to what it looked up


class Line(TypedDict, total=False):
    """A line of a ledger, as JSON; the others of a process's lines are in `watcher_child.py`."""

    kind: str
    time: float  # seconds since 1970
    pid: int
    tid: int
    program: str
    module: str | None  # of Python
    call: str
    family: str  # of a socket without an address
    address: str
    port: int | str | None  # in words where the system chooses it
    scope: str
    host: str  # that was looked up
    addresses: Sequence[str]  # that it was found to have
    name: str  # that a name server was asked for
    is_question: bool  # whether what was sent to a name server is a query and nothing more
    site: str  # file:line
    why: str
    level: str
    version: int
    settle: str
    command: str
    count: int
    repeats: "Sequence[Line]"  # each with its `count`


@dataclass(frozen=True)
class Reach:
    """A host, with its subdomains, that may be connected to.

    why: the purpose. host: a name or an address; "": any host, but only for processes of the Python module `module`.
    """

    host: str
    why: str
    module: str = ""

    def covers(self, names: Iterable[str], module: str) -> bool:
        """Return whether one of the names that an address is known by may be reached by a process of a module."""
        if self.module and module.partition(".")[0] != self.module:
            return False
        host = self.host.lower().rstrip(".")
        names = [name.lower().rstrip(".") for name in names if name]
        return not host or any(name == host or name.endswith(f".{host}") for name in names)


class Names:
    """Which host an address was looked up for, from the lines of a ledger in their order.

    Python says which addresses a name was found to have. Of native code only the questions are seen, not the answers:
    what it asked a moment ago is guessed, but never of an address that Python was given as such.
    """

    def __init__(self) -> None:
        self._sites: dict[tuple[object, object], Line] = {}
        self._hosts: dict[object, list[str]] = {}  # by address, the latest first
        self._asked: dict[object, list[tuple[float, str]]] = {}

    def add(self, line: Line) -> None:
        if line.get("kind") == "site":
            self._sites.setdefault((line.get("address"), line.get("port")), line)
        host = line.get("host", "")
        for address in line.get("addresses", ()):
            hosts = self._hosts.setdefault(address, [])
            hosts[:] = [host, *(other for other in hosts if other != host)]
        if (name := line.get("name")) and line.get("scope") == "resolver":
            self._asked.setdefault(line.get("pid"), []).append((line.get("time", 0.0), name))

    def site(self, line: Line) -> Line:
        """Return the line of Python's hook about the same address; empty where there is none."""
        return self._sites.get((line.get("address"), line.get("port")), {})

    def of(self, line: Line) -> list[str]:
        """Return the names of what a line reached, the likeliest first; empty where none is known."""
        return self._known(line) or self._guessed(line)

    def is_guess(self, line: Line) -> bool:
        """Return whether the names of a line are what native code asked for before, whatever the answer was."""
        return not self._known(line) and bool(self._guessed(line))

    def _known(self, line: Line) -> list[str]:
        if line.get("name") and line.get("scope") == "resolver":  # what another one is asked says nothing of itself
            return [line["name"]]
        host = self.site(line).get("host")
        return self._hosts.get(line.get("address")) or ([host] if host else [])

    def _guessed(self, line: Line) -> list[str]:
        if line.get("scope") != "beyond" or line.get("port") == DNS or self.site(line):
            return []
        asked, now = self._asked.get(line.get("pid"), []), line.get("time", 0.0)
        return list(dict.fromkeys(name for at, name in reversed(asked) if 0 <= now - at <= LOOKUP_SECONDS))

    def is_declared(self, line: Line, reaches: Iterable[Reach], module: str) -> bool:
        """Return whether every name that a line may mean is declared.

        A name server of this machine's settings is declared with anything that is; only queries may be sent to it.
        """
        reaches, names = list(reaches), self.of(line)
        if line.get("is_question") is False:
            return False
        if not names and line.get("scope") == "resolver":
            return any(reach.module in ("", module.partition(".")[0]) for reach in reaches)
        address = line.get("address", "")
        return any(r.covers([address], module) for r in reaches) or all(
            any(r.covers([name], module) for r in reaches) for name in names or [address]
        )


def scope_of(address: str) -> str:
    """Return the scope of an address that only Python's hook saw, or of a name before it is resolved.

    Only a whole address can be: 127.example.org is anybody's.
    """
    if address == "localhost" or address.startswith("/"):
        return "loopback"
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "beyond"
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return "loopback" if ip.is_loopback or ip.is_unspecified else "beyond"
