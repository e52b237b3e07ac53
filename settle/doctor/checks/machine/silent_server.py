"""The server that was started last does not answer, or left its record behind when it ended."""

import http.client
import urllib.parse
from collections.abc import Iterator
from typing import ClassVar

from settle.base.server_state import running_server
from settle.doctor.checks import Check
from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.subject import ThisMachine

SECONDS = 3.0  # in which a server should answer


class SilentProcess(Details):
    """The process of the server."""

    pid: int


class SilentServer(Check[ThisMachine, SilentProcess]):
    """A server that runs should answer."""

    number: ClassVar[int] = 27
    symptom: ClassVar[str] = "a client cannot reach settle's server"
    seconds: ClassVar[float] = SECONDS

    def detect(self, subject: ThisMachine) -> Iterator[Finding[SilentProcess]]:
        server = running_server()
        if server is None:
            return
        why = _why_silent(server.address)
        if why:
            what = f"the server at {server.address} runs and does not answer"
            yield self.finding(what, why, strength=0.9, details=SilentProcess(pid=server.pid))

    def fix(self, finding: Finding[SilentProcess], subject: ThisMachine) -> Fix:
        return Fix(f"end process {finding.details.pid}, and start the server again", "settle serve")


def _why_silent(address: str) -> str:
    """Return why nothing answers at an address of this machine; empty where something does, be it an error."""
    place = urllib.parse.urlsplit(address)
    connection = http.client.HTTPConnection(place.hostname or "127.0.0.1", place.port, timeout=SECONDS)
    try:
        connection.request("GET", "/health")
        connection.getresponse()
        return ""
    except (OSError, http.client.HTTPException) as e:
        return str(e) or type(e).__name__
    finally:
        connection.close()
