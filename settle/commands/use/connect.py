"""Set a client up to use the server that runs here, and check it."""

from typing import ClassVar

from pydantic import Field

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.python_command import extra_command
from settle.base.registry import part_names
from settle.commands import Command

CLIENTS = ", ".join(name.replace("_", "-") for name in part_names("connect/clients"))


class Connect(Command):
    """Set a client up to use the running server, and check it.

    The check sends the requests that the client sends. Shows what to put into the client's configuration. With --write
    it is written, beside everything that is there already, and --undo takes it back. Without a client: lists the
    clients, the server's address and its key.
    """

    positional: ClassVar[tuple[str, ...]] = ("client",)

    client: str = Field("", description=CLIENTS)
    model: str | None = Field(None, description="the model to use (default: the first that chats)")
    write: bool = Field(False, description="write the client's file, and let its browser extension in")
    print: bool = Field(False, description="only show what to configure; send no requests")
    undo: bool = Field(False, description="take back what --write did")
    force: bool = Field(
        False, description="undo even if the file was changed since; with --write, replace another server"
    )
    mcp: list[str] = Field(
        default_factory=list, description="collection that its agent may read, by `settle mcp`; no server is needed"
    )
    address: str | None = Field(None, description="of the server (default: the one that runs here)")
    key: str | None = Field(None, description="of the server (default: the one of this machine)")
    origin: str = Field("", description="of the browser extension, where every browser has another one")

    def run(self, events: Events) -> int:
        try:
            from settle.connect.client import ServerChoice, connect, connect_documents, disconnect, list_clients
        except ModuleNotFoundError as e:
            raise UsageError(f"connecting needs {e.name}", extra_command("serve")) from None
        if not self.client:
            list_clients(events)
            return 0
        if self.write and (self.print or self.undo):
            raise UsageError("--write cannot be combined with --print or --undo", "give one of them")
        if self.undo:
            disconnect(self.client, self.force, events)
            return 0
        if self.mcp:
            return 0 if connect_documents(self.client, self.mcp, self.write, not self.print, events) else 1
        server = ServerChoice(self.address, self.key, self.model, self.origin, self.force)
        return 0 if connect(self.client, server, self.write, not self.print, events) else 1
