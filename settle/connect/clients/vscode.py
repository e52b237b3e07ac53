"""Visual Studio Code's own chat: its provider "Custom Endpoint", in chatLanguageModels.json of the user's settings.

According to VS Code's source, a key in `apiKey` is looked up in its secret store only, and a literal one is ignored; a
header `Authorization` of a model is sent unchanged.
"""

from pathlib import Path
from typing import Any, ClassVar

from settle.connect.clients import (
    NO_KEY,
    Client,
    ClientRequest,
    Connection,
    chat,
    environment,
    settings_home,
    tool,
)
from settle.connect.config_files import ConfigFile, Entry, json_entry, json_file

VENDOR, NAME = "customendpoint", "settle"
UNKNOWN_CONTEXT = 8192


class VSCode(Client):
    """From version 1.122 on, without an account; before, the provider had another name."""

    about: ClassVar[str] = "VS Code's own chat and agent, 1.122 or newer"
    needs: ClassVar[int] = 32_768

    def files(self, connection: Connection) -> list[ConfigFile]:
        group = _group(connection)
        empty: list[Entry] = []
        return [json_file(_user_file("chatLanguageModels.json"), [group], empty, lambda value: _with(value, group))]

    def document_files(self, command: Entry) -> list[ConfigFile]:
        return [json_entry(_user_file("mcp.json"), "servers", {"type": "stdio", **command})]

    def note(self, connection: Connection) -> str:
        return (
            "choose the model in Chat → Manage Models; the file is of the default profile. By hand: Chat: Manage "
            "Language Models → Add → Custom Endpoint → Chat Completions"
        )

    def requests(self, connection: Connection) -> list[ClientRequest]:
        read = tool("read_file", "Read the contents of a file.", "filePath", "The absolute path of the file to read.")
        system, usage = "You are an expert AI programming assistant.", {"include_usage": True}
        more: dict[str, Any] = {"tools": [read], "temperature": 0.1, "top_p": 1, "n": 1}
        return [chat(connection, "its agent, with tools", system, tool_choice="auto", stream_options=usage, **more)]


def _user_file(name: str) -> Path:
    portable, data = environment("VSCODE_PORTABLE"), environment("VSCODE_APPDATA")
    folder = portable / "user-data" if portable else (data or settings_home()) / "Code"
    return folder / "User" / name


def _group(connection: Connection) -> Entry:
    context = connection.context or UNKNOWN_CONTEXT
    answer = min(8192, context // 4)
    model = {
        "id": connection.model,
        "name": f"settle {connection.model}",
        "url": f"{connection.openai}/chat/completions",
        "toolCalling": True,
        "vision": False,
        "maxInputTokens": context - answer,
        "maxOutputTokens": answer,
        "requestHeaders": {"Authorization": f"Bearer {connection.key or NO_KEY}"},
    }
    return {"name": NAME, "vendor": VENDOR, "apiType": "chat-completions", "models": [model]}


def _with(value: list[Entry], group: Entry) -> list[Entry]:
    """Fields that VS Code adds to our group, such as the effort of reasoning, stay."""
    ours = [old for old in value if old.get("vendor") == VENDOR and old.get("name") == NAME]
    return [{**old, **group} if old is ours[0] else old for old in value] if ours else [*value, group]
