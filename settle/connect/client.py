"""What `settle connect` does: lists the clients, shows how one is set up, writes or restores its files, checks it."""

import tempfile
from collections.abc import Sequence
from typing import NamedTuple

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import AnswerText, Listing, ResultReady, Say, Warn
from settle.base.python_command import extra_command
from settle.base.server_state import running_server, server_key
from settle.connect.client_files import MCP, is_connected, save, saved_names, undo
from settle.connect.clients import Client, Connection, cli_name, documents_command
from settle.connect.config_files import Entry
from settle.connect.server import CheckResult, check_request, open_connection

START_SECONDS = 60.0  # in which a server has to say what it can do
LONGEST_ERROR = 300  # characters


class ServerChoice(NamedTuple):
    """The server that a client is to use, as far as a person has said; the fields are those of `open_connection`."""

    address: str | None = None
    key: str | None = None
    model: str | None = None
    origin: str = ""
    replaces: bool = False


def client_names() -> list[str]:
    return [cli_name(name) for name in Client.part_names()]


def find_client(name: str) -> Client:
    """Return a client. Raises UsageError that lists the clients."""
    if name not in client_names():
        raise UsageError(f"there is no client {name!r}", f"known: {', '.join(client_names())}")
    return Client.make(name.replace("-", "_"), {})


def list_clients(events: Events) -> None:
    """Emit the server's address and key, and all clients."""
    server = running_server()
    key = server_key(create=False) if server is None or server.needs_key else None
    rows = [["address", server.address if server else "no server runs: `settle serve` starts one"]]
    rows.append(["key", key or ("none needed" if server else "made when the server starts for the first time")])
    events.emit(Listing(title="the server", columns=("what", "value"), rows=rows))
    clients = [(name, find_client(name).about, is_connected(name)) for name in client_names()]
    listed = [[name, about, "connected" if connected else ""] for name, about, connected in clients]
    note = "`settle connect CLIENT` shows what to configure and checks it; --write writes it"
    events.emit(Listing(title="clients", columns=("client", "what it is", ""), rows=listed, note=note))
    result = [{"name": name, "about": about, "connected": connected} for name, about, connected in clients]
    server_fields = server._asdict() if server else None
    events.emit(ResultReady(result={"server": server_fields, "key": key, "clients": result}))


def disconnect(name: str, force: bool, events: Events) -> None:
    """Undo what `connect` wrote. Raises UsageError, RunError."""
    find_client(name)
    done = [line for saved in saved_names(name) or [name] for line in undo(saved, force)]
    for line in done or ["nothing was left to undo"]:
        events.emit(Say(text=line))
    events.emit(ResultReady(result={"client": name, "undone": done}))


def connect(name: str, server: ServerChoice, is_written: bool, is_checked: bool, events: Events) -> bool:
    """Show what to configure, and return whether all of the client's requests passed.

    is_written: writes it too; is_checked: sends the client's requests. Raises CannotMerge with what to put into the
    file by hand."""
    client, connection = find_client(name), open_connection(*server)
    files, steps, note = client.files(connection), client.steps(connection), client.note(connection)
    for file in files:
        events.emit(Say(text=f"put this into {file.path}:"))
        events.emit(AnswerText(text=file.part.rstrip("\n") + "\n"))
    if steps:
        events.emit(AnswerText(text=steps))
    if note:
        events.emit(Say(text=note))
    if 0 < connection.context < client.needs:
        text = (
            f"{connection.model} is served with {connection.context:,} tokens of context; {name} needs {client.needs:,}"
        )
        events.emit(Warn(text=text))
    if (files or client.origins(connection)) and is_checked and not is_written:
        events.emit(Say(text="nothing is written; --write does that"))
    written = _write(name, client, connection, events) if is_written else []
    checks = _check(name, client, connection, events) if is_checked else []
    result = {
        "client": name,
        "address": connection.address,
        "model": connection.model,
        "files": [{"path": str(file.path), "part": file.part} for file in files],
        "steps": steps,
        "note": note,
        "written": written,
        "checks": [vars(check) | {"passed": check.passed} for check in checks],
    }
    events.emit(ResultReady(result=result))
    return all(check.passed for check in checks)


def connect_documents(
    name: str, collections: Sequence[str], is_written: bool, is_checked: bool, events: Events
) -> bool:
    """Show how a client is to start `settle mcp`, and return whether its tools are there when it is started so.

    is_written: writes it too. Raises UsageError for a client that has no file for it, CannotMerge."""
    command = documents_command(collections)
    files = find_client(name).document_files(command)
    if not files:
        able = [other for other in client_names() if find_client(other).document_files(command)]
        raise UsageError(f"settle has no file of {name} for documents to write", f"it has of {', '.join(able)}")
    for file in files:
        events.emit(Say(text=f"put this into {file.path}:"))
        events.emit(AnswerText(text=file.part.rstrip("\n") + "\n"))
    why = check_documents(command) if is_checked else ""
    if why:
        events.emit(Warn(text=f"started as {name} would, `settle mcp` fails: {why}"))
    elif is_checked:
        events.emit(Say(text=f"✓ {name} can read {', '.join(collections)}"))
    paths = save(name + MCP, files, frozenset()) if is_written and not why else []
    for path in paths:
        events.emit(Say(text=f"written: {path}; `settle connect {name} --undo` takes it back"))
    if not paths:
        events.emit(Say(text="nothing is written" + ("" if is_written else "; --write does that")))
    shown = [{"path": str(file.path), "part": file.part} for file in files]
    result = {"client": name, "collections": [*collections], "files": shown, "written": [str(path) for path in paths]}
    events.emit(ResultReady(result=result | {"why": why}))
    return not why


def check_documents(command: Entry) -> str:
    """Start an MCP server as a client does, ask for its tools, and return what is wrong, or "".

    Raises UsageError without the library."""
    try:
        import anyio
        from mcp import ClientSession, MCPError, StdioServerParameters, stdio_client
    except ModuleNotFoundError as e:
        raise UsageError(f"documents for an editor need {e.name}", extra_command("mcp")) from None

    async def names_of_tools() -> list[str]:
        with anyio.fail_after(START_SECONDS):
            server = StdioServerParameters.model_validate(command)
            async with stdio_client(server, errlog=errors) as streams, ClientSession(*streams) as session:
                await session.initialize()
                return [tool.name for tool in (await session.list_tools()).tools]

    why = ""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        try:
            if "ask" not in anyio.run(names_of_tools):
                why = "it has no tool to ask"
        except* (MCPError, OSError, TimeoutError) as e:
            why = f"it ended or did not answer in {START_SECONDS:.0f} s ({type(e.exceptions[0]).__name__})"
        errors.seek(0)
        return " ".join(errors.read().split())[:LONGEST_ERROR] or why if why else ""


def _write(name: str, client: Client, connection: Connection, events: Events) -> list[str]:
    files, origins = client.files(connection), client.origins(connection)
    if not files and not origins:
        events.emit(Say(text=f"{name} has no file to write here: follow the steps above"))
        return []
    paths = save(name, files, origins)
    for path in paths:
        events.emit(Say(text=f"written: {path}"))
    if origins:
        events.emit(Say(text=f"allowed from now on: {', '.join(sorted(origins))}"))
    events.emit(Say(text=f"`settle connect {name} --undo` takes it back"))
    return [str(path) for path in paths]


def _check(name: str, client: Client, connection: Connection, events: Events) -> Sequence[CheckResult]:
    checks = []
    for request in client.requests(connection):
        check = check_request(connection, request)
        checks.append(check)
        if check.passed:
            events.emit(Say(text=f"✓ {check.what}: works, {check.seconds:.1f} s"))
        else:
            events.emit(Warn(text=f"{check.what}: {check.why}"))
    failed = [check for check in checks if not check.passed]
    if not failed:
        events.emit(Say(text=f"{name} can use {connection.model} at {connection.address}"))
    elif client.origins(connection) and all("origin" in check.why for check in failed):
        events.emit(Say(text=f"the server does not let it in yet; run `settle connect {name} --write`"))
    return checks
