"""The server that the clients are checked against."""

from tests.server.conftest import at_home, live, stocked

__all__ = ["at_home", "live", "stocked"]
