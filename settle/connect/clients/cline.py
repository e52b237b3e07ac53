"""Cline, the coding agent: its settings of providers, which its command line and its extension share."""

import datetime
import json
import shlex
from pathlib import Path
from typing import Any, ClassVar

from settle.connect.clients import NO_KEY, Ask, CannotMerge, Client, ConfigFile, Connection, environment
from settle.connect.clients._asks import chat, tool
from settle.connect.config_files import json_merged

PROVIDER = "openai-compatible"


class Cline(Client):
    """It has room for one server of OpenAI's API."""

    about: ClassVar[str] = "coding agent for terminal and VS Code"
    needs: ClassVar[int] = 16_384

    def files(self, connection: Connection) -> list[ConfigFile]:
        provider = _provider(connection)
        part = json.dumps({"lastUsedProvider": PROVIDER, "providers": {PROVIDER: provider}}, indent=2)
        empty = {"version": 1, "lastUsedProvider": PROVIDER, "modes": {}, "providers": {}}
        return [
            ConfigFile(
                _path(), part, lambda old: json_merged(old, empty, lambda v: _with(v, provider, connection), part)
            )
        ]

    def note(self, connection: Connection) -> str:
        given = ["-p", PROVIDER, "-k", connection.key or NO_KEY, "-m", connection.model, "-b", connection.openai]
        return f"Cline writes the same file itself: {shlex.join(['cline', 'auth', *given])}"

    def requests(self, connection: Connection) -> list[Ask]:
        read = tool("read_file", "Request to read the contents of a file.", "path", "The path of the file")
        return [
            chat(
                connection,
                "its agent, with tools",
                "You are Cline, a highly skilled software engineer.",
                tools=[read],
                tool_choice="auto",
                stream_options={"include_usage": True},
            )
        ]


def _path() -> Path:
    """As Cline looks for it."""
    exact = environment("CLINE_PROVIDER_SETTINGS_PATH")
    if exact:
        return exact
    data = environment("CLINE_DATA_DIR") or (environment("CLINE_DIR") or Path.home() / ".cline") / "data"
    return data / "settings" / "providers.json"


def _provider(connection: Connection) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    settings = {
        "provider": PROVIDER,
        "apiKey": connection.key or NO_KEY,
        "model": connection.model,
        "baseUrl": connection.openai,
    }
    return {"settings": settings, "updatedAt": now, "tokenSource": "manual"}


def _with(value: dict[str, Any], provider: dict[str, Any], connection: Connection) -> dict[str, Any]:
    """Raises CannotMerge where another server has the only place."""
    others = value.get("providers") or {}
    there = others.get(PROVIDER) or {}
    settings = there.get("settings") or {}
    key, url = str(settings.get("apiKey") or ""), str(settings.get("baseUrl") or "")
    is_ours = not url or url == connection.openai or key.startswith("sk-settle-")
    if not is_ours and not connection.replaces:
        raise CannotMerge(
            f"Cline has room for one server of OpenAI's API, and it is {url[:100]}",
            "--force puts this one there, and --undo brings that one back",
        )
    merged = {**there, **provider, "settings": {**settings, **provider["settings"]}}
    return value | {"lastUsedProvider": PROVIDER, "providers": {**others, PROVIDER: merged}}
