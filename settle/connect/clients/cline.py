"""Cline, the coding agent: its settings of providers, which its command line and its extension share."""

import datetime
from pathlib import Path
from typing import ClassVar

from settle.base.python_command import shell_line
from settle.connect.clients import (
    NO_KEY,
    Client,
    ClientRequest,
    Connection,
    chat,
    environment,
    tool,
)
from settle.connect.config_files import CannotMerge, ConfigFile, Entry, json_file

PROVIDER = "openai-compatible"


class Cline(Client):
    """It has room for one server of OpenAI's API."""

    about: ClassVar[str] = "coding agent for terminal and VS Code"
    needs: ClassVar[int] = 16_384

    def files(self, connection: Connection) -> list[ConfigFile]:
        provider = _provider(connection)
        part = {"lastUsedProvider": PROVIDER, "providers": {PROVIDER: provider}}
        empty = {"version": 1, "lastUsedProvider": PROVIDER, "modes": {}, "providers": {}}
        path = environment("CLINE_PROVIDER_SETTINGS_PATH")
        if path is None:
            data = environment("CLINE_DATA_DIR") or (environment("CLINE_DIR") or Path.home() / ".cline") / "data"
            path = data / "settings" / "providers.json"
        return [json_file(path, part, empty, lambda value: _with(value, provider, connection))]

    def note(self, connection: Connection) -> str:
        options = ["-p", PROVIDER, "-k", connection.key or NO_KEY, "-m", connection.model, "-b", connection.openai]
        return f"Cline writes the same file itself: {shell_line('cline', 'auth', *options)}"

    def requests(self, connection: Connection) -> list[ClientRequest]:
        read = tool("read_file", "Request to read the contents of a file.", "path", "The path of the file")
        system, usage = "You are Cline, a highly skilled software engineer.", {"include_usage": True}
        return [
            chat(connection, "its agent, with tools", system, tools=[read], tool_choice="auto", stream_options=usage)
        ]


def _provider(connection: Connection) -> Entry:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    settings = {
        "provider": PROVIDER,
        "apiKey": connection.key or NO_KEY,
        "model": connection.model,
        "baseUrl": connection.openai,
    }
    return {"settings": settings, "updatedAt": now, "tokenSource": "manual"}


def _with(value: Entry, provider: Entry, connection: Connection) -> Entry:
    """Return the settings with our server. Raises CannotMerge where another server has the only place."""
    others = _object(value.get("providers"))
    current = _object(others.get(PROVIDER))
    settings = _object(current.get("settings"))
    key, url = str(settings.get("apiKey") or ""), str(settings.get("baseUrl") or "")
    is_ours = not url or url == connection.openai or key.startswith("sk-settle-")
    if not is_ours and not connection.replaces:
        raise CannotMerge(
            f"Cline has room for one server of OpenAI's API, and it is {url[:100]}",
            "--force replaces it, and --undo brings it back",
        )
    merged = {**current, **provider, "settings": {**settings, **_object(provider["settings"])}}
    return value | {"lastUsedProvider": PROVIDER, "providers": {**others, PROVIDER: merged}}


def _object(value: object) -> Entry:
    """Return an object. Raises TypeError, which makes the file one that cannot be extended."""
    if not isinstance(value, dict | None):
        raise TypeError(f"{str(value)[:40]} is not an object")
    return value or {}
