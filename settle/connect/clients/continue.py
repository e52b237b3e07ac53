"""Continue, the assistant in VS Code, JetBrains and its command line `cn`: config.yaml of its own folder."""

from pathlib import Path
from typing import ClassVar

from settle.connect.clients import NO_KEY, Client, ClientRequest, Connection, chat, environment, tool
from settle.connect.config_files import ConfigFile, Entry, yaml_file

HEAD: Entry = {"name": "settle", "version": "1.0.0", "schema": "v1"}  # required in every file of Continue


class Continue(Client):
    """Its provider `openai` speaks to any server of OpenAI's API."""

    about: ClassVar[str] = "coding assistant for VS Code, JetBrains, terminal"
    needs: ClassVar[int] = 8192

    def files(self, connection: Connection) -> list[ConfigFile]:
        folder = environment("CONTINUE_GLOBAL_DIR") or Path.home() / ".continue"
        return [yaml_file(folder / "config.yaml", HEAD, ["models"], _entry(connection))]

    def note(self, connection: Connection) -> str:
        return "choose the model `settle` in Continue; `cn --config FILE` reads another file"

    def requests(self, connection: Connection) -> list[ClientRequest]:
        read = tool("Read", "Use this tool to read the content of an existing file", "filepath", "Path of the file")
        agent = chat(
            connection,
            "its agent mode, with tools",
            "You are an agent in the Continue CLI.",
            tools=[read],
            stream_options={"include_usage": True},
        )
        if "insert" not in connection.capabilities:
            return [agent]
        body = {"model": connection.model, "prompt": "def add(a, b):\n    return", "stream": True, "max_tokens": 16}
        return [agent, ClientRequest("its completion of code", "/v1/completions", body | {"stop": ["\n\n"]}, "text")]


def _entry(connection: Connection) -> Entry:
    can_insert = "insert" in connection.capabilities
    entry: Entry = {
        "name": "settle",
        "provider": "openai",
        "model": connection.model,
        "apiBase": connection.openai,
        "apiKey": connection.key or NO_KEY,
        "roles": ["chat", "edit", "apply", "summarize", *(["autocomplete"] if can_insert else [])],
        "capabilities": ["tool_use"],
    }
    if connection.context:
        entry["defaultCompletionOptions"] = {"contextLength": connection.context}
    return entry
