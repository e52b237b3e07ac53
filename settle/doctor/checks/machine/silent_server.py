"""The server that was started last does not answer, or left its record behind when it ended."""

import http.client
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from settle.base.server_state import running_server
from settle.doctor.checks import Check
from settle.doctor.findings import Finding, Fix
from settle.doctor.subject import Subject
from settle.doctor.trial import Trial

SECONDS = 3.0  # in which a server should answer


class SilentServer(Check):
    """A server that runs should answer."""

    number: ClassVar[int] = 27
    symptom: ClassVar[str] = "a client cannot reach settle's server"
    about: ClassVar[tuple[str, ...]] = ()
    seconds: ClassVar[float] = SECONDS

    def detect(self, subject: Subject) -> Iterator[Finding]:
        server = running_server()
        if server is None:
            return
        why = _why_silent(server.address)
        if why:
            what = f"the server at {server.address} runs and does not answer"
            yield Finding(self.part_name(), what, (why,), 0.9, {"pid": server.pid})

    def trial(self, finding: Finding, subject: Subject, folder: Path) -> Trial | None:
        return None

    def fix(self, finding: Finding, subject: Subject) -> Fix:
        return Fix(f"end process {finding.details['pid']}, and start the server again", "settle serve")


def _why_silent(address: str) -> str:
    """Why nothing answers at an address of this machine; empty where something does, be it an error."""
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
