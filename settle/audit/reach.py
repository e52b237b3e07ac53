"""What a command may reach beyond this machine, said beforehand: usually nothing."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Reach:
    """A host, with all below it, that may be connected to. why: what for. host: a name or an address."""

    host: str
    why: str

    def covers(self, name: str) -> bool:
        """Whether a name or an address is this host, or below it."""
        name, host = name.lower().rstrip("."), self.host.lower().rstrip(".")
        return name == host or name.endswith(f".{host}")


def is_declared(reaches: Iterable[Reach], names: Iterable[str]) -> bool:
    """Whether one of the names that an address is known by may be reached."""
    return any(reach.covers(name) for reach in reaches for name in names)
