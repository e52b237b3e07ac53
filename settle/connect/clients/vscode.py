"""Visual Studio Code's own chat: its provider "Custom Endpoint", in chatLanguageModels.json of the user's settings.

According to VS Code's source, a key in `apiKey` is looked up in its secret store only, and a literal one is ignored; a
header `Authorization` of a model is sent unchanged.
"""

import json
from pathlib import Path
from typing import ClassVar

from settle.connect.clients import NO_KEY, Client, ClientRequest, ConfigFile, Connection, environment, settings_home
from settle.connect.clients._requests import chat, tool
from settle.connect.config_files import merge_json

VENDOR, NAME = "customendpoint", "settle"
UNKNOWN_CONTEXT = 8192


class VSCode(Client):
    """From version 1.122 on, without an account; before, the provider had another name."""

    about: ClassVar[str] = "VS Code's own chat and agent, 1.122 or newer"
    needs: ClassVar[int] = 32_768

    def files(self, connection: Connection) -> list[ConfigFile]:
        group = _group(connection)
        part = json.dumps([group], indent=2)
        empty: list[dict[str, object]] = []
        return [ConfigFile(_path(), part, lambda old: merge_json(old, empty, lambda value: _with(value, group), part))]

    def note(self, connection: Connection) -> str:
        return (
            "choose the model in Chat → Manage Models; the file is of the default profile. By hand: Chat: Manage "
            "Language Models → Add → Custom Endpoint → Chat Completions"
        )

    def requests(self, connection: Connection) -> list[ClientRequest]:
        read = tool("read_file", "Read the contents of a file.", "filePath", "The absolute path of the file to read.")
        return [
            chat(
                connection,
                "its agent, with tools",
                "You are an expert AI programming assistant.",
                tools=[read],
                tool_choice="auto",
                temperature=0.1,
                top_p=1,
                n=1,
                stream_options={"include_usage": True},
            )
        ]


def _path() -> Path:
    portable, data = environment("VSCODE_PORTABLE"), environment("VSCODE_APPDATA")
    folder = portable / "user-data" if portable else (data or settings_home()) / "Code"
    return folder / "User" / "chatLanguageModels.json"


def _group(connection: Connection) -> dict[str, object]:
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


def _with(value: list[dict[str, object]], group: dict[str, object]) -> list[dict[str, object]]:
    """Fields that VS Code adds to our group, such as the effort of reasoning, stay."""
    ours = [old for old in value if old.get("vendor") == VENDOR and old.get("name") == NAME]
    if not ours:
        return [*value, group]
    return [{**old, **group} if old is ours[0] else old for old in value]
