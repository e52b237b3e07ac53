"""Set a client up to talk to the server that runs here, and try it."""

import ipaddress
import urllib.parse
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from settle.base.errors import RunError, UsageError
from settle.base.event_log import Events
from settle.base.events import AnswerText, Listing, ResultReady, Say, Warn
from settle.base.registry import part, part_names
from settle.commands import Command

if TYPE_CHECKING:
    from settle.connect.clients import Client, Connection
    from settle.connect.setup import Tried

FAMILY = "connect/clients"


class Connect(Command):
    """Set a client up to talk to the running server, and try it with the requests that the client sends.

    It shows what belongs into the client's configuration; with --write it puts it there, beside everything that is in
    it already, and --undo takes it out again. Without a client: which there are, the server's address and its key.
    """

    positional: ClassVar[tuple[str, ...]] = ("client",)

    client: str = Field("", description="continue, cline, open-webui, librechat, page-assist, vscode, curl, python …")
    model: str | None = Field(None, description="the model to use; the first that chats if not given")
    write: bool = Field(False, description="write the client's file too, and let its browser extension in")
    print: bool = Field(False, description="only show what to configure, and do not try it")
    undo: bool = Field(False, description="take back what --write did")
    force: bool = Field(
        False, description="undo though the file was changed since; with --write, take the place of another server"
    )
    address: str | None = Field(None, description="of the server; the one that runs here if not given")
    key: str | None = Field(None, description="of the server; the one kept here if not given")
    origin: str = Field("", description="of the browser extension, where it is another one in every browser")

    def run(self, events: Events) -> int:
        try:
            from settle.connect import setup
        except ModuleNotFoundError as e:
            raise UsageError(f"connecting needs {e.name}", "pip install 'settle-lm[serve]'") from None
        if not self.client:
            return self._list(events)
        if self.write and (self.print or self.undo):
            raise UsageError("--write does not go with --print or --undo", "give one of them")
        client = _client(self.client)
        if self.undo:
            told = setup.undo(self.client, self.force)
            for line in told or ["nothing is left of it"]:
                events.emit(Say(text=line))
            events.emit(ResultReady(result={"client": self.client, "undone": told}))
            return 0
        connection = self._connection()
        result = self._shown(events, client, connection)
        result["written"] = self._written(events, client, connection) if self.write else []
        tried = [] if self.print else self._tried(events, client, connection)
        result["checks"] = [vars(t) | {"passed": t.passed} for t in tried]
        events.emit(ResultReady(result=result))
        return 0 if all(t.passed for t in tried) else 1

    def _list(self, events: Events) -> int:
        from settle.base.server_state import running_server
        from settle.connect.clients import spelled
        from settle.connect.setup import is_connected
        from settle.server.guard.keys import server_key

        server = running_server()
        key = server_key(make=False) if server is None or server["needs_key"] else None
        rows = [["address", server["address"] if server else "no server runs: `settle serve` starts one"]]
        rows.append(["key", key or ("none needed" if server else "made when the server starts for the first time")])
        events.emit(Listing(title="the server", columns=("what", "value"), rows=rows))
        names = [spelled(name) for name in part_names(FAMILY)]
        told = [{"name": n, "about": _client(n).about, "connected": is_connected(n)} for n in names]
        listed = [[c["name"], c["about"], "connected" if c["connected"] else ""] for c in told]
        note = "`settle connect CLIENT` shows what to configure and tries it; --write writes it"
        events.emit(Listing(title="clients", columns=("client", "what it is", ""), rows=listed, note=note))
        events.emit(ResultReady(result={"server": server, "key": key, "clients": told}))
        return 0

    def _connection(self) -> "Connection":
        """Raises RunError without a server, UsageError for a model that is not there."""
        from settle.base.server_state import running_server
        from settle.connect.clients import Connection
        from settle.connect.setup import served_models
        from settle.server.guard.keys import server_key

        server = running_server()
        if self.address is None and server is None:
            raise RunError("no server runs here", "start it with `settle serve`, or give --address")
        address = (self.address or str(server and server["address"])).rstrip("/").removesuffix("/v1")
        if not address.startswith(("http://", "https://")):
            raise UsageError(f"--address {address}: it begins with http://", "--address http://127.0.0.1:7388")
        is_open = server is not None and address == server["address"] and not server["needs_key"]
        key = self.key
        if key is None and not is_open and _is_here(address):  # the key of this machine is nobody else's to know
            key = server_key(make=False)
        models = served_models(address, key or "")
        model = _chosen(models, self.model)
        return Connection(
            address=address,
            key=key or "",
            model=model["id"],
            context=int(model.get("context_length") or 0),
            capabilities=tuple(model.get("capabilities") or ()),
            embedder=next((m["id"] for m in models if "embedding" in (m.get("capabilities") or ())), ""),
            origin=self.origin,
            replaces=self.force,
        )

    def _shown(self, events: Events, client: "Client", connection: "Connection") -> dict[str, Any]:
        files, steps, note = client.files(connection), client.steps(connection), client.note(connection)
        for file in files:
            events.emit(Say(text=f"what belongs into {file.path}:"))
            events.emit(AnswerText(text=file.part.rstrip("\n") + "\n"))
        if steps:
            events.emit(AnswerText(text=steps))
        if note:
            events.emit(Say(text=note))
        if 0 < connection.context < client.needs:
            events.emit(
                Warn(
                    text=f"{connection.model} is served with {connection.context:,} tokens of context, and "
                    f"{self.client} is of little use below {client.needs:,}",
                )
            )
        if (files or client.origins(connection)) and not (self.write or self.print):
            events.emit(Say(text="nothing is written; --write does that"))
        return {
            "client": self.client,
            "address": connection.address,
            "model": connection.model,
            "files": [{"path": str(file.path), "part": file.part} for file in files],
            "steps": steps,
            "note": note,
        }

    def _written(self, events: Events, client: "Client", connection: "Connection") -> list[str]:
        """Raises CannotMerge with what to put into the file by hand."""
        from settle.connect.setup import save

        files, origins = client.files(connection), client.origins(connection)
        if not files and not origins:
            events.emit(Say(text=f"{self.client} has no file to write here: do what is shown above"))
            return []
        paths = save(self.client, files, origins)
        for path in paths:
            events.emit(Say(text=f"written: {path}"))
        if origins:
            events.emit(Say(text=f"may ask from now on: {', '.join(sorted(origins))}"))
        events.emit(Say(text=f"`settle connect {self.client} --undo` takes it back"))
        return [str(path) for path in paths]

    def _tried(self, events: Events, client: "Client", connection: "Connection") -> "list[Tried]":
        from settle.connect.setup import try_out

        tried = []
        for ask in client.requests(connection):
            came = try_out(connection, ask)
            tried.append(came)
            if came.passed:
                events.emit(Say(text=f"✓ {came.what}: works, {came.seconds:.1f} s"))
            else:
                events.emit(Warn(text=f"{came.what}: {came.why}"))
        failed = [t for t in tried if not t.passed]
        if not failed:
            events.emit(Say(text=f"{self.client} can talk to {connection.model} at {connection.address}"))
        elif client.origins(connection) and all("origin" in t.why for t in failed):
            events.emit(Say(text=f"the server does not let it in yet: `settle connect {self.client} --write` does"))
        return tried


def _client(name: str) -> "Client":
    """Raises UsageError naming the clients there are."""
    from settle.connect.clients import Client, spelled

    names = [spelled(found) for found in part_names(FAMILY)]
    if name not in names:
        raise UsageError(f"there is no client {name!r} here", f"known: {', '.join(names)}")
    made = part(FAMILY, name.replace("-", "_"))()
    assert isinstance(made, Client)
    return made


def _is_here(address: str) -> bool:
    """Whether an address is of this machine's own loopback."""
    host = urllib.parse.urlsplit(address).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _chosen(models: list[dict[str, Any]], wanted: str | None) -> dict[str, Any]:
    """The model of that name, else the first that chats. Raises UsageError."""
    known = ", ".join(model["id"] for model in models)
    if not models:
        raise UsageError("the server has no models yet", "`settle pull smollm2`")
    if wanted is None:
        chats = [model for model in models if "tools" in (model.get("capabilities") or ())]
        if not chats and "capabilities" in models[0]:
            raise UsageError("none of the server's models can chat", f"they are: {known}")
        return (chats or models)[0]
    found = [model for model in models if wanted.removesuffix(":latest") == model["id"]]
    if not found:
        raise UsageError(f"the server has no model {wanted!r}", f"it has: {known}")
    return found[0]
