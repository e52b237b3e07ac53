"""curl, in a shell."""

import json
import shlex
from typing import ClassVar

from settle.base.python_command import is_powershell, powershell_string
from settle.connect.clients import NO_KEY, Client, ClientRequest, Connection, chat


class Curl(Client):
    """A command to paste."""

    about: ClassVar[str] = "a command for the shell"
    needs: ClassVar[int] = 0

    def steps(self, connection: Connection) -> str:
        ask = _ask(connection)
        body = json.dumps(ask.body, ensure_ascii=False)
        if is_powershell():  # its `curl` is another command, and its older versions lose quotation marks in arguments
            return (
                f"Invoke-RestMethod -Method Post -Uri {powershell_string(connection.address + ask.path)} `\n"
                f"  -Headers @{{Authorization = {powershell_string(f'Bearer {connection.key or NO_KEY}')}}} `\n"
                "  -ContentType 'application/json; charset=utf-8' `\n"
                f"  -Body {powershell_string(body)} | ConvertTo-Json -Depth 9\n"
            )
        return (
            f"curl -sS {shlex.quote(connection.address + ask.path)} \\\n"
            f"  -H {shlex.quote(f'Authorization: Bearer {connection.key or NO_KEY}')} \\\n"
            "  -H 'Content-Type: application/json' \\\n"
            f"  -d {shlex.quote(body)}\n"
        )

    def requests(self, connection: Connection) -> list[ClientRequest]:
        return [_ask(connection)]


def _ask(connection: Connection) -> ClientRequest:
    return chat(connection, "the command", stream=False, headers={"User-Agent": "curl/8.14.1", "Accept": "*/*"})
